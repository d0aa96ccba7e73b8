"""What is told of a volume's or a pool's health: the same by each RPC, of CSI 1.12 and of 1.13."""

from driver import Driver

from pycsi.model.health import Reason
from pycsi.proto import csi_pb2 as csi

STATUSES = {str(reason): reason.status.name for reason in Reason}


def listed(driver: Driver) -> dict[str, csi.VolumeCondition]:
    """Return the conditions in ListVolumes, by volume."""
    entries = driver.controller.ListVolumes(csi.ListVolumesRequest()).entries
    return {entry.volume.volume_id: entry.status.volume_condition for entry in entries}


def unwell(driver: Driver, volume_id: str, reason: str, *words: str) -> csi.VolumeHealth:
    """Expect a volume to have a fault, with these words, wherever that is told; return them all."""
    health = driver.health(volume_id)
    faults = {entry.reason: entry for entry in health.health_statuses}
    assert reason in faults, health
    for word in words:
        assert word in faults[reason].message, health
    for entry in health.health_statuses:
        assert csi.VolumeHealthErrorType.Name(entry.status) == STATUSES[entry.reason]
        assert 0 < len(entry.message.encode()) <= 128
    assert len(faults) == len(health.health_statuses) <= 16
    severities = [entry.status for entry in health.health_statuses]
    assert severities == sorted(severities, reverse=True)
    assert driver.node_health(volume_id) == health
    assert health in driver.unwell()
    condition = driver.condition(volume_id)
    assert condition.abnormal
    assert condition.message == health.health_statuses[0].message
    assert listed(driver)[volume_id] == condition
    return health


def well(driver: Driver, *volume_ids: str) -> None:
    """Expect volumes to have no fault, wherever that is told."""
    for volume_id in volume_ids:
        health = driver.health(volume_id)
        assert not health.health_statuses, health
        assert driver.node_health(volume_id) == health
        condition = driver.condition(volume_id)
        assert not condition.abnormal, condition.message
        assert condition.message
        assert listed(driver)[volume_id] == condition
    assert not {health.volume_id for health in driver.unwell()} & {*volume_ids}


def storage(driver: Driver) -> dict[str, csi.NodeGetStorageHealthResponse.StorageBackendHealth]:
    """Return the faults of the pools, by reason."""
    found = driver.storage_health()
    faults = {entry.reason: entry for entry in found}
    assert len(faults) == len(found) <= 16
    unreachable = csi.STORAGE_UNREACHABLE
    for entry in found:
        is_degraded = STATUSES[entry.reason] == "DEGRADED"
        assert entry.status == (csi.STORAGE_DEGRADED if is_degraded else unreachable)
        assert 0 < len(entry.message.encode()) <= 128
    return faults
