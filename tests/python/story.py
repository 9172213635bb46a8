"""The main job through a client that was generated from openapi.json.

Usage: story.py URL QCOW2_FILE SHA256_OF_THE_GUEST_CONTENT
"""

import hashlib
import sys
from io import BytesIO
from pathlib import Path

from vdiskd_client import Client
from vdiskd_client.api.content import upload_image_file
from vdiskd_client.api.images import (
    create_image,
    delete_image,
    get_image,
    get_image_chain,
    get_image_info,
    get_image_map,
    import_image,
    list_images,
)
from vdiskd_client.api.jobs import get_job
from vdiskd_client.api.verbs import commit_image, convert_image, rebase_image
from vdiskd_client.models import (
    CommitRequest,
    ConvertRequest,
    CreateImage,
    ImageState,
    ImportImage,
    ImportSource,
    JobState,
    Problem,
    RebaseRequest,
)
from vdiskd_client.types import File


def good(answer):
    assert answer is not None and not isinstance(answer, Problem), answer
    return answer


def ended(client, job):
    """Waits for a job and returns it; it must succeed."""
    while job.state in (JobState.QUEUED, JobState.RUNNING, JobState.PAUSED):
        job = good(get_job.sync(job.id, client=client, wait="10s"))
    assert job.state == JobState.SUCCEEDED, job.error
    assert job.progress.done_bytes == job.progress.total_bytes, job.progress
    return job


def content_digest(client, image_id):
    response = client.get_httpx_client().get(f"/v1/images/{image_id}/data")
    response.raise_for_status()
    return hashlib.sha256(response.content).hexdigest()


def main(url, path, digest):
    client = Client(base_url=url, timeout=60.0)
    source = ImportSource(upload=True)
    disk = good(import_image.sync(client=client, body=ImportImage(name="disk", format_="qcow2", source=source)))
    assert disk.upload_url == f"/v1/images/{disk.id}/file", disk.upload_url
    payload = Path(path).read_bytes()
    checksum = hashlib.sha256(payload).hexdigest()
    disk = good(upload_image_file.sync(disk.id, client=client, body=File(BytesIO(payload)), x_checksum_sha_256=checksum))
    assert disk.state == ImageState.READY, disk

    assert good(get_image_info.sync(disk.id, client=client))["virtual-size"] == disk.virtual_size
    page = good(get_image_map.sync(disk.id, client=client))
    assert page.extents[0].start == 0 and page.extents[0].length > 0, page

    overlay = good(create_image.sync(client=client, body=CreateImage(name="overlay", format_="qcow2", backing=disk.id)))
    layers = good(get_image_chain.sync(overlay.id, client=client)).layers
    assert [layer.name for layer in layers] == ["overlay", "disk"], layers
    refused = delete_image.sync(disk.id, client=client)
    assert isinstance(refused, Problem) and refused.code == "conflict_dependents", refused
    assert refused.dependents == [overlay.id], refused

    copies = {}
    for name, format_, compress in [("packed", "qcow2", True), ("plain", "raw", False)]:
        body = ConvertRequest(name=name, format_=format_, compress=compress)
        job = ended(client, good(convert_image.sync(overlay.id, client=client, body=body)))
        copies[name] = job.result["image_id"]
        assert content_digest(client, copies[name]) == digest, name

    body = RebaseRequest(backing=good(get_image.sync(copies["plain"], client=client)).id)
    ended(client, good(rebase_image.sync(overlay.id, client=client, body=body)))
    assert content_digest(client, overlay.id) == digest
    ended(client, good(commit_image.sync(overlay.id, client=client, body=CommitRequest(drop=True))))
    assert content_digest(client, copies["plain"]) == digest

    for image in [copies["packed"], copies["plain"], disk.id]:
        assert delete_image.sync_detailed(image, client=client).status_code == 204
    assert good(list_images.sync(client=client)).items == []


if __name__ == "__main__":
    main(*sys.argv[1:])
