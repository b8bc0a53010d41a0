import http.server
import socket
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from pipeline import job_server
from pipeline.job_server import PROPERTIES, check_job_server

LICENCE = "#\n#    Licensed to the Apache Software Foundation\n# SDK source version\n\n"


def jar(folder, version):
    path = folder / f"job-server-{version}.jar"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("META-INF/MANIFEST.MF", "Manifest-Version: 1.0\n")
        if version:
            text = f"{LICENCE}version={version}\nsdk_version={version}\n"
            file.writestr(PROPERTIES, text)
    return path


@pytest.mark.parametrize("name", ["flink_job_server_jar", "spark_job_server_jar"])
@pytest.mark.parametrize("version", ["2.67.0", "2.87.1", "1.77.0", "3.77.0"])
def test_a_job_server_too_far_apart_is_refused(tmp_path, name, version):
    path = jar(tmp_path, version)
    told = (
        f"^--{name}={path}: a job server of Beam {version}, too far from the Beam 2.77.0 of this "
        "Python: 9 minor releases at most;"
    )
    with pytest.raises(ValueError, match=told):
        check_job_server([f"--{name}={path}"], "2.77.0")


@pytest.mark.parametrize("version", ["2.68.0", "2.70.0", "2.77.0", "2.78.0-SNAPSHOT", ""])
def test_one_that_is_near_or_does_not_tell_passes(tmp_path, version):
    check_job_server(["--flink_job_server_jar", str(jar(tmp_path, version))], "2.77.0")


def test_none_is_named():
    check_job_server(["--flink_master=host:8081"], "2.77.0")
    check_job_server(["--flink_job_server_jar=https://host/a.jar"], "2.77.0")


def test_no_jar(tmp_path):
    (tmp_path / "a.jar").write_text("text")
    with pytest.raises(ValueError, match=f"^--flink_job_server_jar={tmp_path}/a.jar: no jar$"):
        check_job_server([f"--flink_job_server_jar={tmp_path}/a.jar"])
    with pytest.raises(
        ValueError, match=f"^--spark_job_server_jar={tmp_path}/b.jar: no such file$"
    ):
        check_job_server([f"--spark_job_server_jar={tmp_path}/b.jar"])


class Page(http.server.BaseHTTPRequestHandler):
    """As Flink's web page is."""

    def do_GET(self):
        self.send_error(404)


@pytest.fixture(params=["silent", "http"])
def endpoint(request):
    """Something listens there that is no job server."""
    if request.param == "silent":
        with socket.create_server(("127.0.0.1", 0)) as server:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        return
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_what_is_no_job_server_is_refused(endpoint, monkeypatch):
    monkeypatch.setattr(job_server, "READY_SECONDS", 1.0)
    told = (
        f"^--job_endpoint={endpoint}: what listens there does not speak as a job server, or hangs"
    )
    with pytest.raises(ValueError, match=told):
        check_job_server([f"--job_endpoint={endpoint}"])


def test_a_job_server_passes():
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    check_job_server([f"--job_endpoint=127.0.0.1:{port}"])
    server.stop(None)
