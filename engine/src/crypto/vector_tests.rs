//! Published test vectors. Modes are called below [`super::SectorCipher`], whose sectors are at least 512 bytes.

use super::{algorithm::CipherAlgorithm as A, iv::IvKind, sector::keyed_mode, spec::*, *};

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// Encrypts as one sector, compares, decrypts, compares.
fn check(alg: A, mode: CipherMode, key: &str, iv: &str, plain: &[u8], cipher: &str) {
    let spec = CipherSpec::new(alg, mode, IvKind::Null).unwrap();
    let keyed = keyed_mode(spec, &hex(key)).unwrap();
    let mut first = [0; 16];
    first[..hex(iv).len()].copy_from_slice(&hex(iv));
    let mut data = plain.to_vec();
    keyed.encrypt(&mut std::iter::once(first), plain.len(), &mut data);
    assert_eq!(data, hex(cipher), "{} {}", alg.name(), mode.name());
    keyed.decrypt(&mut std::iter::once(first), plain.len(), &mut data);
    assert_eq!(data, plain, "{} {}", alg.name(), mode.name());
}

const SP800_38A: &str = "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51
    30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710";
const KEY_128: &str = "2b7e151628aed2a6abf7158809cf4f3c";
const KEY_192: &str = "8e73b0f7da0e6452c810f32b809079e562f8ead2522c6b7b";
const KEY_256: &str = "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4";

#[test]
fn aes_modes_match_sp800_38a() {
    let plain = hex(SP800_38A);
    let (iv, counter) = ("000102030405060708090a0b0c0d0e0f", "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff");
    let ecb = "3ad77bb40d7a3660a89ecaf32466ef97f5d3d58503b9699de785895a96fdbaaf
        43b1cd7f598ece23881b00e3ed0306887b0c785e27e8ad3f8223207104725dd4";
    check(A::Aes128, CipherMode::Ecb, KEY_128, iv, &plain, ecb);
    let cbc = "7649abac8119b246cee98e9b12e9197d5086cb9b507219ee95db113a917678b2
        73bed6b8e3c1743b7116e69e222295163ff1caa1681fac09120eca307586e1a7";
    check(A::Aes128, CipherMode::Cbc, KEY_128, iv, &plain, cbc);
    let cbc = "4f021db243bc633d7178183a9fa071e8b4d9ada9ad7dedf4e5e738763f69145a
        571b242012fb7ae07fa9baac3df102e008b0e27988598881d920a9e64f5615cd";
    check(A::Aes192, CipherMode::Cbc, KEY_192, iv, &plain, cbc);
    let cbc = "f58c4c04d6e5f1ba779eabfb5f7bfbd69cfc4e967edb808d679f777bc6702c7d
        39f23369a9d9bacfa530e26304231461b2eb05e2c39be9fcda6c19078c6a9d1b";
    check(A::Aes256, CipherMode::Cbc, KEY_256, iv, &plain, cbc);
    let ctr = "874d6191b620e3261bef6864990db6ce9806f66b7970fdff8617187bb9fffdff
        5ae4df3edbd5d35e5b4f09020db03eab1e031dda2fbe03d1792170a0f3009cee";
    check(A::Aes128, CipherMode::Ctr, KEY_128, counter, &plain, ctr);
}

/// The plain text of IEEE 1619's 512-byte vectors.
fn counting() -> Vec<u8> {
    (0..=255).chain(0..=255).collect()
}

#[test]
fn aes_xts_matches_ieee_1619() {
    let cipher = "917cf69ebd68b2ec9b9fe9a3eadda692cd43d2f59598ed858c02c2652fbf922e";
    check(A::Aes128, CipherMode::Xts, &"00".repeat(32), "", &[0; 32], cipher);

    let key = "27182818284590452353602874713526 31415926535897932384626433832795";
    let cipher = "27a7479befa1d476489f308cd4cfa6e2a96e4bbe3208ff25287dd3819616e89cc78cf7f5e543445f8333d8fa7f56000005279fa5d8b5e4
        ad40e736ddb4d35412328063fd2aab53e5ea1e0a9f332500a5df9487d07a5c92cc512c8866c7e860ce93fdf166a24912b422976146ae20ce846bb7dc9b
        a94a767aaef20c0d61ad02655ea92dc4c4e41a8952c651d33174be51a10c421110e6d81588ede82103a252d8a750e8768defffed9122810aaeb99f9172
        af82b604dc4b8e51bcb08235a6f4341332e4ca60482a4ba1a03b3e65008fc5da76b70bf1690db4eae29c5f1badd03c5ccf2a55d705ddcd86d449511ceb
        7ec30bf12b1fa35b913f9f747a8afd1b130e94bff94effd01a91735ca1726acd0b197c4e5b03393697e126826fb6bbde8ecc1e08298516e2c9ed03ff3c
        1b7860f6de76d4cecd94c8119855ef5297ca67e9f3e7ff72b1e99785ca0a7e7720c5b36dc6d72cac9574c8cbbc2f801e23e56fd344b07f22154beba0f0
        8ce8891e643ed995c94d9a69c9f1b5f499027a78572aeebd74d20cc39881c213ee770b1010e4bea718846977ae119f7a023ab58cca0ad752afe656bb3c
        17256a9f6e9bf19fdd5a38fc82bbe872c5539edb609ef4f79c203ebb140f2e583cb2ad15b4aa5b655016a8449277dbd477ef2c8d6c017db738b18deb4a
        427d1923ce3ff262735779a418f20a282df920147beabe421ee5319d0568";
    check(A::Aes128, CipherMode::Xts, key, "", &counting(), cipher);

    let key = "2718281828459045235360287471352662497757247093699959574966967627
        3141592653589793238462643383279502884197169399375105820974944592";
    let cipher = "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b5d31e276f8fe4a8d66b317f9ac683f44680a86ac35adfc
        3345befecb4bb188fd5776926c49a3095eb108fd1098baec70aaa66999a72a82f27d848b21d4a741b0c5cd4d5fff9dac89aeba122961d03a757123e987
        0f8acf1000020887891429ca2a3e7a7d7df7b10355165c8b9a6d0a7de8b062c4500dc4cd120c0f7418dae3d0b5781c34803fa75421c790dfe1de1834f2
        80d7667b327f6c8cd7557e12ac3a0f93ec05c52e0493ef31a12d3d9260f79a289d6a379bc70c50841473d1a8cc81ec583e9645e07b8d9670655ba5bbcf
        ecc6dc3966380ad8fecb17b6ba02469a020a84e18e8f84252070c13e9f1f289be54fbc481457778f616015e1327a02b140f1505eb309326d68378f8374
        595c849d84f4c333ec4423885143cb47bd71c5edae9be69a2ffeceb1bec9de244fbe15992b11b77c040f12bd8f6a975a44a0f90c29a9abc3d4d8939272
        84c58754cce294529f8614dcd2aba991925fedc4ae74ffac6e333b93eb4aff0479da9a410e4450e0dd7ae4c6e2910900575da401fc07059f645e8b7e9b
        fdef33943054ff84011493c27b3429eaedb4ed5376441a77ed43851ad77f16f541dfd269d50d6a5f14fb0aab1cbb4c1550be97f7ab4066193c4caa773d
        ad38014bd2092fa755c824bb5e54c4f36ffda9fcea70b9c6e693e148c151";
    check(A::Aes256, CipherMode::Xts, key, "ff", &counting(), cipher);
}

#[test]
fn aes_lrw_matches_the_draft_of_p1619() {
    let key = "4562ac25f828176d4c268414b5680185 258e2a05e73e9d03ee5a830ccc094c87";
    let iv = "00000000000000000000000000000001";
    check(
        A::Aes128,
        CipherMode::Lrw,
        key,
        iv,
        b"0123456789ABCDEF",
        "f1b273cd65a3df5fe95d489254634eb8",
    );
}

#[test]
fn serpent_matches_nessie() {
    let one_bit = |bytes: usize| format!("80{}", "00".repeat(bytes - 1));
    let check = |alg, len, cipher| check(alg, CipherMode::Ecb, &one_bit(len), "", &[0; 16], cipher);
    check(A::Serpent128, 16, "264e5481eff42a4606abda06c0bfda3d");
    check(A::Serpent192, 24, "9e274ead9b737bb21efcfca548602689");
    check(A::Serpent256, 32, "a223aa1288463c0e2be38ebd825616c0");
}

#[test]
fn twofish_matches_its_paper() {
    let check = |alg, key: &str, cipher| check(alg, CipherMode::Ecb, key, "", &[0; 16], cipher);
    check(A::Twofish128, &"00".repeat(16), "9f589f5cf6122c32b6bfec2f2ae8c35a");
    check(
        A::Twofish192,
        "0123456789abcdeffedcba98765432100011223344556677",
        "cfd1d2e5a9be9cdf501f13b892bd2248",
    );
    let key = "0123456789abcdeffedcba987654321000112233445566778899aabbccddeeff";
    check(A::Twofish256, key, "37527be0052334b89f0cfccae87cfa20");
}

#[test]
fn cast5_matches_rfc_2144() {
    let key = "0123456712345678234567893456789a";
    check(
        A::Cast5,
        CipherMode::Ecb,
        key,
        "",
        &hex("0123456789abcdef"),
        "238b4fe5847e44b2",
    );
}

#[test]
fn hashes_of_abc_match_their_standards() {
    for (hash, digest) in [
        (HashAlgorithm::Sha1, "a9993e364706816aba3e25717850c26c9cd0d89d"),
        (
            HashAlgorithm::Sha224,
            "23097d223405d8228642a477bda255b32aadbce4bda0b3f7e36c9da7",
        ),
        (
            HashAlgorithm::Sha256,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        ),
        (
            HashAlgorithm::Sha384,
            "cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed8086072ba1e7cc2358baeca134c825a7",
        ),
        (
            HashAlgorithm::Sha512,
            "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
        ),
        (HashAlgorithm::Ripemd160, "8eb208f7e05d987a9b044a8e98c6b087f15a0bfc"),
        (
            HashAlgorithm::Whirlpool,
            "4e2448a4c6f486bb16b6562c73b4020bf3043e3a731bce721ae1b303d97e6d4c7181eebdb6c57e277d0e34957114cbd6c797fc9d95d8b582d225292076d4eef5",
        ),
    ] {
        assert_eq!(*hash.digest(&[b"a", b"bc"]), hex(digest), "{}", hash.name());
    }
}

fn derived(hash: HashAlgorithm, passphrase: &str, salt: &str, iterations: u32, expected: &str) {
    let mut out = vec![0; hex(expected).len()];
    pbkdf2(
        hash,
        passphrase.as_bytes(),
        salt.as_bytes(),
        iterations,
        &|| false,
        &mut out,
    )
    .unwrap();
    assert_eq!(out, hex(expected), "{passphrase} {salt} {iterations}");
}

#[test]
fn pbkdf2_sha1_matches_rfc_6070_and_rfc_3962() {
    let check = |p, s, c, expected| derived(HashAlgorithm::Sha1, p, s, c, expected);
    check("password", "salt", 1, "0c60c80f961f0e71f3a9b524af6012062fe037a6");
    check("password", "salt", 2, "ea6c014dc72d6f8ccd1ed92ace1d41f0d8de8957");
    check("password", "salt", 4096, "4b007901b765489abead49d926f721d065a429c1");
    let (long, longer) = ("passwordPASSWORDpassword", "saltSALTsaltSALTsaltSALTsaltSALTsalt");
    check(long, longer, 4096, "3d2eec4fe41c849b80c8d83662c0e44a8b291a964cf2f07038");
    check("pass\0word", "sa\0lt", 4096, "56fa6aa75548099dcc37d7f03425e0c3");
    let salt = "ATHENA.MIT.EDUraeburn";
    check(
        "password",
        salt,
        1,
        "cdedb5281bb2f801565a1122b25635150ad1f7a04bb9f3a333ecc0e2e1f70837",
    );
    check(
        "password",
        salt,
        1200,
        "5c08eb61fdf71e4e4ec3cf6ba1f5512ba7e52ddbc5e5142f708a31e2e62b1e13",
    );
}

#[test]
fn pbkdf2_sha256_matches_rfc_7914() {
    let expected = "55ac046e56e3089fec1691c22544b605f94185216dde0465e68b9d57c20dacbc
        49ca9cccf179b645991664b39d77ef317c71b845b1e30bd509112041d3a19783";
    derived(HashAlgorithm::Sha256, "passwd", "salt", 1, expected);
    let expected = "4ddcd8f60b98be21830cee5ef22701f9641a4418d04c0414aeff08876b34ab56
        a1d425a1225833549adb841b51c9b3176a272bdebba1d078478f62b397f33c8d";
    derived(HashAlgorithm::Sha256, "Password", "NaCl", 80000, expected);
}

/// From the test program of the reference implementation, version 0x13.
#[test]
fn argon2_matches_the_reference_implementation() {
    use Argon2Variant::{Argon2i, Argon2id};
    for (variant, time, bits, lanes, expected) in [
        (
            Argon2i,
            2,
            16,
            1,
            "c1628832147d9720c5bd1cfd61367078729f6dfb6f8fea9ff98158e0d7816ed0",
        ),
        (
            Argon2i,
            2,
            8,
            2,
            "4ff5ce2769a1d7f4c8a491df09d41a9fbe90e5eb02155a13e4c01e20cd4eab61",
        ),
        (
            Argon2id,
            2,
            16,
            1,
            "09316115d5cf24ed5a15a31a3ba326e5cf32edc24702987c02b6566f61913cf7",
        ),
        (
            Argon2id,
            2,
            8,
            1,
            "9dfeb910e80bad0311fee20f9c0e2b12c17987b4cac90c2ef54d5b3021c68bfe",
        ),
        (
            Argon2id,
            2,
            8,
            2,
            "6d093c501fd5999645e0ea3bf620d7b8be7fd2db59c20d9fff9539da2bf57037",
        ),
    ] {
        let cost = Argon2Cost {
            time,
            memory_kib: 1 << bits,
            lanes,
        };
        let limit = Argon2Limit {
            memory_kib: 1 << 16,
            work_kib: 1 << 17,
        };
        let mut out = [0; 32];
        argon2(variant, b"password", b"somesalt", cost, &limit, &|| false, &mut out).unwrap();
        assert_eq!(out.to_vec(), hex(expected), "{variant:?} {cost:?}");
    }
}
