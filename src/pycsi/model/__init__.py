"""What the driver talks about: requests, records, parameters, sizes, errors."""
