"""Operations: metrics, logs and the HTTP endpoints an operator and Kubernetes look at."""
