"""Environment variables that make Ray print less and react faster. They are set before Ray is imported."""

from __future__ import annotations

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
}
PROMPT = {
    "RAY_get_check_signal_interval_milliseconds": "20",  # instead of 1000, because SIGTERM may also end the raylet
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # also the interval at which the controller reads reports
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "60",
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "10",
}
