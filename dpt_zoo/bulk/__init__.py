"""Detection in data sets of any size on any number of machines, with the results in Parquet files."""
