"""The studio: a local page and an HTTP API that reconstruct photos, in processes of their own."""
