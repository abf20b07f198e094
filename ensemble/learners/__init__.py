"""What knowledge tracing alone needs: learners' histories in files, and the platform's names of problems."""
