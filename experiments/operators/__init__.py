"""Which merge operator suits two experts of a real small model."""
