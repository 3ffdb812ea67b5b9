"""Speed against peers and against the limits of the machine."""
