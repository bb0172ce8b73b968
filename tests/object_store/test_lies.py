"""A store that lies: what is lost, altered, cut or kept in spite of us is found."""

import pytest

from clustergauge.probe import Wrong
from tests.objects import BUCKET, Answer, data, is_data, sample, work


def test_a_lost_write_is_found(tmp_path, proxy):
    with work(tmp_path, "put", 4096) as (made, _):
        lost = []

        def drop_one(method, path, *_):
            if method == "PUT" and is_data(path) and not lost:
                lost.append(path)
                return Answer(200, b"", {"ETag": '"0123456789abcdef0123456789abcdef"'})
            return None

        made.reset()
        proxy.before = drop_one
        made.run()
        with pytest.raises(Wrong, match=rf"1 of \d+ objects that were written are not listed: {lost[0].rpartition('/')[2]}"):
            made.reset()


def test_a_large_write_that_is_lost_is_found(tmp_path, proxy):
    with work(tmp_path, "put", 9 << 20, 1) as (made, _):
        made.reset()
        proxy.before = lambda method, path, *_: Answer(200, b"", {"ETag": '"00"'}) if method == "PUT" and is_data(path) else None
        made.run()
        with pytest.raises(Wrong, match="not listed"):
            made.check()


@pytest.mark.parametrize(("op", "size"), [("get", 8192), ("range", 8192), ("get", 9 << 20)])
def test_a_flipped_bit_is_found(op, size, tmp_path, proxy):
    with work(tmp_path, op, size, 1) as (made, _):
        flipped = []

        def flip(method, path, answer):
            if method == "GET" and is_data(path) and not flipped:
                flipped.append(path)
                body = bytearray(answer.body)
                body[5000] ^= 1
                return Answer(answer.status, bytes(body), answer.headers)
            return answer

        made.reset()
        proxy.after = flip
        made.run()
        with pytest.raises(Wrong, match=r"s3://bench/some/where/clustergauge-.*/data-\d+ differs at byte \d+"):
            made.check()


def test_a_write_that_was_altered_is_found(tmp_path, proxy, store):
    with work(tmp_path, "put", 4096) as (made, _):
        sample(made)
        key = data(store)[0]
        body = bytearray(store.get_object(Bucket=BUCKET, Key=key)["Body"].read())
        body[77] ^= 4
        store.put_object(Bucket=BUCKET, Key=key, Body=bytes(body))
        with pytest.raises(Wrong, match="differs at byte 77: expected"):
            made.check()


def test_a_short_range_is_found(tmp_path, proxy):
    with work(tmp_path, "range", 8192, 1) as (made, _):

        def cut(method, path, answer):
            if method == "GET" and is_data(path):
                first, _, rest = answer.headers["content-range"].removeprefix("bytes ").partition("-")
                headers = answer.headers | {"content-range": f"bytes {first}-{int(first) + 4095}/{rest.partition('/')[2]}"}
                return Answer(206, answer.body[:4096], headers)
            return answer

        made.reset()
        proxy.after = cut
        with pytest.raises(Wrong, match=r"data-1: bytes \d+\.\.\d+ were asked for, bytes \d+\.\.\d+ came"):
            made.run()
        proxy.after = lambda _method, _path, answer: answer


@pytest.mark.parametrize("op", ["get", "range"])
def test_an_answer_that_is_too_short_is_found(op, tmp_path, proxy):
    with work(tmp_path, op, 8192, 1) as (made, _):
        made.reset()
        proxy.after = lambda method, path, answer: (
            Answer(answer.status, answer.body[:4096], answer.headers) if method == "GET" and is_data(path) else answer
        )
        made.run()
        with pytest.raises(Wrong, match=r"asked for 8192 bytes from byte \d+ on, 4096 bytes came"):
            made.check()


def test_a_store_that_ignores_ranges_is_named(tmp_path, proxy):
    from storage_io.errors import StorageError

    with work(tmp_path, "range", 8192, 1) as (made, _):
        made.reset()
        proxy.after = lambda method, path, answer: Answer(200, answer.body, {}) if is_data(path) and method == "GET" else answer
        with pytest.raises(StorageError, match="can't do ranges"):
            made.run()
        proxy.after = lambda _method, _path, answer: answer


def test_a_delete_that_does_nothing_is_found(tmp_path, proxy):
    with work(tmp_path, "delete", 4096) as (made, _):
        made.reset()
        proxy.before = lambda method, path, *_: Answer(204) if method == "DELETE" else None
        made.run()
        proxy.before = lambda *_: None
        with pytest.raises(Wrong, match="listed that must not be there"):
            made.check()


def test_a_list_that_forgets_is_found(tmp_path, proxy):
    with work(tmp_path, "list", 4096) as (made, _):

        def forget(method, path, answer):
            if "list-type=2" in path:
                start = answer.body.index(b"<Contents>")
                stop = answer.body.index(b"</Contents>") + len(b"</Contents>")
                return Answer(answer.status, answer.body[:start] + answer.body[stop:], answer.headers)
            return answer

        made.reset()
        proxy.after = forget
        made.run()
        with pytest.raises(Wrong, match="1 of 30 objects that were written are not listed"):
            made.check()
        proxy.after = lambda _method, _path, answer: answer


def test_an_object_that_vanishes_is_wrong_and_no_error_of_the_request(tmp_path, proxy, store):
    with work(tmp_path, "get", 4096, 1) as (made, _):
        made.reset()
        for key in data(store):
            store.delete_object(Bucket=BUCKET, Key=key)
        with pytest.raises(Wrong, match="it is not there, though the store had said that it was written"):
            made.run()
