"""What `crepe bench --kernels` measures, one file for each operation."""
