"""What a running agent shows of itself: log lines, a health endpoint, notifications to systemd."""
