"""A model over millions of pictures: `knet predict --input`, Ray Data, Spark."""
