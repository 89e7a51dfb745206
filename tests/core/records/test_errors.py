import pytest

from understudy.core.records import errors
from understudy.core.records.errors import BadInput, UnderstudyError, UnknownName

ALL = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, UnderstudyError)]


def test_a_near_name_is_offered():
    error = UnknownName.among("site", "mpl_in.3", ["mlp_in.3", "mlp_out.3", "embed"])
    assert str(error).startswith("'mpl_in.3' is not a known site. Did you mean mlp_in.3")


def test_without_a_near_one_all_are_listed_up_to_twelve():
    assert str(UnknownName.among("kind", "zzz", ["sae", "clt"])) == "'zzz' is not a known kind. Known: sae, clt."
    many = str(UnknownName.among("kind", "zzz", [f"a{i}" for i in range(20)]))
    assert many.endswith("a10, a11 and 8 more.")
    assert str(UnknownName.among("kind", "zzz", [])) == "'zzz' is not a known kind. Known: none."


def test_a_hint_says_what_to_do():
    assert str(UnknownName.among("kind", "sea", ["sae"], hint="See --help.")).endswith("Did you mean sae? See --help.")


@pytest.mark.parametrize("error", ALL)
def test_exit_codes_follow_the_tree(error):
    assert error.exit_code == (2 if issubclass(error, BadInput) else 1)


def test_the_tree_on_the_page_is_the_tree_in_the_code():
    drawn = {line.split("── ")[1].split()[0] for line in errors.__doc__.splitlines() if "── " in line}
    assert drawn | {"UnderstudyError"} == {e.__name__ for e in ALL}
