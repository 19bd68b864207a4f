"""What a GPU does with this package, measured in parts that each leave a JSON: `make bench-gpu`."""
