"""The HTTP server: `lsvcr serve`. Everything here needs the packages of `lsvcr[serve]`."""
