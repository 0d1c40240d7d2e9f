"""Reads token files (.nac, version 1) with nothing but Python. See token-format.md."""
import struct
import sys

CRC_TABLE = []
for n in range(256):
    for _ in range(8):
        n = n >> 1 ^ (0x82F63B78 if n & 1 else 0)
    CRC_TABLE.append(n)

def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF

def read_header(data):
    if data[:8] != b"\x8eNAC\r\n\x1a\n" or data[8] != 1 or data[10:12] != b"\0\0":
        raise ValueError("not a token file of version 1")
    end = 16 + struct.unpack_from("<I", data, 12)[0]
    if crc32c(data[:end]) != struct.unpack_from("<I", data, end)[0]:
        raise ValueError("damaged header")
    names = ("weights n_samples source_samples start_trim sample_rate hop_length source_rate channels "
             "source_channels n_codebooks n_codebooks_total scale_frames packet_frames "
             "segment_samples segment_stride segment_frames").split()
    header = dict(zip(names, struct.unpack_from("<32s3Q3I4H5I", data, 16)))
    at = 16 + 96
    header["codebooks"] = [struct.unpack_from("<II", data, at + 8 * k) for k in range(header["n_codebooks"])]
    at += 8 * header["n_codebooks"]
    def text(length_format):
        nonlocal at
        start = at + struct.calcsize(length_format)
        at = start + struct.unpack_from(length_format, data, at)[0]
        return data[start:at].decode()
    header["family"], header["model"] = text("<B"), text("<B")
    n_tags, at = struct.unpack_from("<H", data, at)[0], at + 2
    header["tags"] = [(text("<B"), text("<H")) for _ in range(n_tags)]
    return header, end + 4

def read_tokens(data):
    """Returns the header, one list of codes per codebook, and the scales."""
    header, at = read_header(data)
    codebooks = header["codebooks"]
    group = max(stride for _, stride in codebooks)
    while any(group % stride for _, stride in codebooks):
        group += 1  # the least common multiple of all strides
    rows, scales = [[] for _ in codebooks], []
    while True:
        sync, kind, n_bytes, first_frame, n_frames = struct.unpack_from("<3sBIQI", data, at)
        end = at + 20 + n_bytes
        if sync != b"\x8eP\xd5" or crc32c(data[at:end]) != struct.unpack_from("<I", data, end)[0]:
            raise ValueError(f"damaged packet at byte {at}")
        payload, at = data[at + 20:end], end + 4
        if kind == 0:
            header["n_frames"] = first_frame
            header["n_samples"], header["source_samples"] = struct.unpack("<QQ", payload)
            return header, rows, scales
        if kind >= 128:
            continue  # carries no codes
        if kind != 1:
            raise ValueError(f"packets of kind {kind} are not known")
        n_scales = -(-n_frames // header["scale_frames"]) if header["scale_frames"] else 0
        scales += struct.unpack_from(f"<{n_scales}f", payload)
        bits = int.from_bytes(payload[4 * n_scales:], "little")
        for _ in range(n_frames // group):
            for row, (size, stride) in zip(rows, codebooks):
                width = (size - 1).bit_length()
                for _ in range(group // stride):
                    row.append(bits & ((1 << width) - 1))
                    bits >>= width

if __name__ == "__main__":
    header, rows, scales = read_tokens(open(sys.argv[1], "rb").read())
    header["weights"] = header["weights"].hex()
    for name, value in header.items():
        print(f"{name}: {value}")
    for row in rows:
        print(*row)
    print(*(struct.pack("<f", scale).hex() for scale in scales))
