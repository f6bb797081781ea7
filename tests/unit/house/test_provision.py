"""The order in which a real server is looked for, on machines that are faked by a folder of small scripts."""

from pathlib import Path

import pytest
from tests.support import provision
from tests.support.provision import ProvisionError

CONSUL = "#!/bin/sh\necho 'Consul v1.9.3'\n"

REDIS = "#!/bin/sh\necho 'Redis server v=7.2.4 sha=00000000:0 malloc=libc bits=64 build=0'\n"

DOCKER = f"""#!/bin/sh
case "$1" in
  version) echo 28.0 ;;
  create) echo c0ffee ;;
  cp) case "$2" in
        *redis*) printf '%s' "{REDIS}" > "$3" ;;
        *) printf '%s' "{CONSUL}" > "$3" ;;
      esac
      chmod +x "$3" ;;
esac
"""

DOCKER_WITHOUT_ENGINE = "#!/bin/sh\nexit 1\n"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the whole PATH but for the shell's own tools."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for tool in ("sh", "chmod"):
        (programs / tool).symlink_to(Path("/bin") / tool)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(provision, "_SYSTEM_FOLDERS", ())
    for variable in ("CONSUL_BIN", "RABBITMQ_SERVER_BIN", "REDIS_BIN"):
        monkeypatch.delenv(variable, raising=False)
    return programs


def program(folder: Path, name: str, text: str = "#!/bin/sh\n") -> Path:
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)
    return path


def find_consul() -> provision.Binary:
    return provision.consul.__wrapped__()


def find_rabbitmq() -> provision.Binary:
    return provision.rabbitmq.__wrapped__()


def find_redis() -> provision.Binary:
    return provision.redis.__wrapped__()


def test_a_named_binary_comes_before_the_path(machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(machine, "consul", CONSUL)
    named = program(tmp_path, "my-consul", CONSUL)
    monkeypatch.setenv("CONSUL_BIN", str(named))
    assert find_consul() == provision.Binary(named, (1, 9, 3), "CONSUL_BIN")


def test_a_name_that_cannot_be_run_is_an_error_and_not_passed_over(
    machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(machine, "consul", CONSUL)
    monkeypatch.setenv("CONSUL_BIN", str(tmp_path / "nothing"))
    with pytest.raises(ProvisionError, match=r"CONSUL_BIN names .*nothing"):
        find_consul()


def test_the_path_comes_before_docker(machine: Path) -> None:
    path = program(machine, "consul", CONSUL)
    program(machine, "docker", DOCKER)
    assert find_consul() == provision.Binary(path, (1, 9, 3), "PATH")


def test_consul_is_copied_out_of_its_image_when_an_engine_answers(machine: Path, tmp_path: Path) -> None:
    program(machine, "docker", DOCKER)
    found = find_consul()
    assert found.path == tmp_path / "cache" / "toska-mesh" / "consul-docker" / "consul"
    assert found.version == (1, 9, 3)


def test_what_was_fetched_before_is_used_again(machine: Path) -> None:
    docker = program(machine, "docker", DOCKER)
    first = find_consul()
    docker.unlink()
    assert find_consul() == provision.Binary(first.path, first.version, "fetched before")


def test_a_client_without_an_engine_is_no_docker(machine: Path) -> None:
    program(machine, "docker", DOCKER_WITHOUT_ENGINE)
    with pytest.raises(ProvisionError, match="no Docker engine answers"):
        find_consul()


def test_when_nothing_works_it_says_what_was_tried_and_what_to_install(machine: Path) -> None:
    with pytest.raises(ProvisionError) as raised:
        find_consul()
    text = str(raised.value)
    assert "consul is not on the PATH" in text
    assert "there is no Docker" in text
    assert "apt-get is missing" in text
    assert "Install Consul, or name its binary in CONSUL_BIN" in text


def test_a_program_that_is_something_else_is_not_taken_for_consul(machine: Path) -> None:
    program(machine, "consul", "#!/bin/sh\necho hello\n")
    with pytest.raises(ProvisionError, match="does not say that it is Consul"):
        find_consul()


def test_redis_is_looked_for_in_the_same_order(machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docker = program(machine, "docker", DOCKER)
    copied = tmp_path / "cache" / "toska-mesh" / "redis-docker" / "redis-server"
    assert find_redis() == provision.Binary(copied, (7, 2, 4), f"Docker image {provision.REDIS_IMAGE}")
    docker.unlink()
    assert find_redis() == provision.Binary(copied, (7, 2, 4), "fetched before")
    path = program(machine, "redis-server", REDIS)
    assert find_redis() == provision.Binary(path, (7, 2, 4), "PATH")
    named = program(tmp_path, "my-redis", REDIS)
    monkeypatch.setenv("REDIS_BIN", str(named))
    assert find_redis() == provision.Binary(named, (7, 2, 4), "REDIS_BIN")


def test_a_redis_of_an_image_that_does_not_run_here_leads_to_the_next_way(machine: Path) -> None:
    program(machine, "docker", DOCKER.replace("echo 'Redis", "exit 127; echo 'Redis"))
    with pytest.raises(ProvisionError, match=r"redis-server does not run(.|\n)*apt-get is missing"):
        find_redis()


def test_rabbitmq_needs_erlang_beside_it(machine: Path) -> None:
    path = program(machine, "rabbitmq-server")
    with pytest.raises(ProvisionError, match="Erlang"):
        find_rabbitmq()
    program(machine, "erl")
    assert find_rabbitmq().path == path


def test_the_wrapper_of_the_system_service_is_passed_over(machine: Path, tmp_path: Path) -> None:
    wrapper = program(tmp_path, "rabbitmq-script-wrapper")
    server = program(tmp_path, "rabbitmq-server")
    (machine / "rabbitmq-server").symlink_to(wrapper)
    program(machine, "erl")
    assert find_rabbitmq().path == server


def test_rabbitmq_runs_in_a_container_when_only_an_engine_is_there(machine: Path) -> None:
    program(machine, "docker", DOCKER)
    assert find_rabbitmq().image == provision.RABBITMQ_IMAGE


def test_rabbitmq_is_not_installed_without_being_root(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(ProvisionError, match="sudo apt-get install rabbitmq-server"):
        find_rabbitmq()


def test_the_command_fails_with_the_words_and_a_code(
    machine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(provision, "consul", provision.consul.__wrapped__)
    assert provision.main() == 1
    assert "Install Consul" in capsys.readouterr().err
