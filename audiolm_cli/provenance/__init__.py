"""Where sound is from: `watermark` and `detector` hear it, `provenance` reads it in the metadata and asks them all."""
