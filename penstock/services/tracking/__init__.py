"""Trackers: TensorBoard, Weights & Biases, MLflow. They are told what a run records, and never in its way."""
