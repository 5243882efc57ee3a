"""The origin of audio: `watermark` marks it, `provenance` writes and reads the metadata and examines files by both."""
