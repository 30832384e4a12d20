"""Where frameworks own the training loop: each module needs the framework of its name."""
