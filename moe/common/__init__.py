"""What every part may use: errors, the console, units, paths, locks, s3. Imports nothing else of moe."""
