"""Where one request's time goes, stage by stage."""
