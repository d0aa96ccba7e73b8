"""The driver's vocabulary: requests, records, parameters, sizes and errors."""
