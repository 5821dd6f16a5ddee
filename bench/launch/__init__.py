"""Where cells run: this process, this machine."""
