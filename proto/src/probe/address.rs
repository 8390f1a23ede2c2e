//! Which addresses a probe may dial. It looks at addresses, never at how they were written: `2852039166`,
//! `0xa9fea9fe` and a name all lead to 169.254.169.254. Whoever dials must dial what was checked here, and
//! resolve nothing again.
//!
//! Private ranges are where engines are. What is refused are addresses that no engine has and that give
//! secrets to whoever asks: link-local and metadata addresses, multicast, what is not an address of a
//! host, the machine itself unless that is meant, and the prober's own port.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use crate::violation::InvalidValue;

/// Of clouds: AWS (IMDS, ECS and EKS are link-local), Google, Azure, Alibaba, Oracle, Scaleway, Linode.
const METADATA_V4: [Ipv4Addr; 3] = [
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(168, 63, 129, 16),
    Ipv4Addr::new(192, 0, 0, 192),
];
const METADATA_V6: [Ipv6Addr; 7] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe),
    Ipv6Addr::new(0xfd00, 0x100, 0, 0, 0, 0, 0x100, 0x200),
    Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42),
    Ipv6Addr::new(0xfd00, 0xa9fe, 0xa9fe, 0, 0, 0, 0, 1),
];
/// Names of the same. They lead to addresses that are refused; some resolvers are made to lie.
const METADATA_NAMES: [&str; 5] = [
    "metadata",
    "metadata.google.internal",
    "metadata.goog",
    "metadata.azure.internal",
    "instance-data",
];

/// Why an address is not dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Blocked {
    /// 169.254.0.0/16, `fe80::/10`.
    #[error("a link-local address")]
    LinkLocal,
    /// Of a cloud's metadata service.
    #[error("an address of a metadata service")]
    Metadata,
    /// 127.0.0.0/8, `::1`.
    #[error("a loopback address")]
    Loopback,
    /// 224.0.0.0/4, `ff00::/8`.
    #[error("a multicast address")]
    Multicast,
    /// 0.0.0.0/8, `::`.
    #[error("no address of a host")]
    Unspecified,
    /// 240.0.0.0/4, 255.255.255.255 with it.
    #[error("a reserved address")]
    Reserved,
    /// Where the prober itself listens.
    #[error("where this process itself listens")]
    Own,
}

/// A block of addresses, such as `169.254.7.0/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    address: IpAddr,
    bits: u8,
}

impl Cidr {
    /// True if the address is in it.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.bits)).unwrap_or(0);
                own.to_bits() & mask == other.to_bits() & mask
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.bits));
                let mask = mask.unwrap_or(0);
                own.to_bits() & mask == other.to_bits() & mask
            }
            _ => false,
        }
    }
}

impl FromStr for Cidr {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let bad = |what: &str| {
            let text: String = text.chars().take(64).collect();
            InvalidValue::new(format!(
                "{text:?} {what}; write a block of addresses such as `169.254.7.0/24`"
            ))
        };
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| bad("has no address"))?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            None => most,
            Some(bits) => bits
                .parse()
                .ok()
                .filter(|bits| *bits <= most)
                .ok_or_else(|| bad("has no number of bits that fits"))?,
        };
        Ok(Self { address, bits })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

/// What a process may probe.
#[derive(Debug, Clone, Default)]
pub struct AddressPolicy {
    /// Programs of this machine.
    pub loopback: bool,
    /// Said to be fine, whatever they are.
    pub allowed: Vec<Cidr>,
    /// Where the process itself listens; never fine.
    pub own: Option<SocketAddr>,
}

impl AddressPolicy {
    /// Says why this address is not to be dialled, if it is not.
    pub fn check(&self, to: SocketAddr) -> Result<(), Blocked> {
        let faces = faces(to.ip());
        let own = |own: SocketAddr| {
            let here = |face: &IpAddr| {
                *face == own.ip() || (own.ip().is_unspecified() && face.is_loopback())
            };
            own.port() == to.port() && faces.iter().any(here)
        };
        if self.own.is_some_and(own) {
            return Err(Blocked::Own);
        }
        let allowed = |face: IpAddr| self.allowed.iter().any(|block| block.contains(face));
        for face in faces.into_iter().filter(|face| !allowed(*face)) {
            match trait_of(face) {
                Some(Blocked::Loopback) if self.loopback => {}
                Some(blocked) => return Err(blocked),
                None => {}
            }
        }
        Ok(())
    }

    /// The same of a name, before it is resolved.
    pub fn check_name(&self, name: &str) -> Result<(), Blocked> {
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        match METADATA_NAMES.contains(&name.as_str()) {
            true => Err(Blocked::Metadata),
            false => Ok(()),
        }
    }
}

/// What of an address alone speaks against it.
fn trait_of(address: IpAddr) -> Option<Blocked> {
    match address {
        IpAddr::V4(address) => {
            let [first, ..] = address.octets();
            match first {
                _ if METADATA_V4.contains(&address) => Some(Blocked::Metadata),
                _ if address.is_link_local() => Some(Blocked::LinkLocal),
                0 => Some(Blocked::Unspecified),
                127 => Some(Blocked::Loopback),
                224..=239 => Some(Blocked::Multicast),
                240..=255 => Some(Blocked::Reserved),
                _ => None,
            }
        }
        IpAddr::V6(address) => match address {
            _ if METADATA_V6.contains(&address) => Some(Blocked::Metadata),
            _ if address.is_unspecified() => Some(Blocked::Unspecified),
            _ if address.is_loopback() => Some(Blocked::Loopback),
            _ if address.is_multicast() => Some(Blocked::Multicast),
            _ if address.is_unicast_link_local() => Some(Blocked::LinkLocal),
            _ => None,
        },
    }
}

/// The address, and those to which it may be translated on the way: an IPv4 address can be written into
/// an IPv6 one in many ways.
fn faces(address: IpAddr) -> Vec<IpAddr> {
    let mut faces = vec![address];
    let IpAddr::V6(v6) = address else {
        return faces;
    };
    let [a, b, c, d, e, f, g, h] = v6.segments();
    let v4 = |high: u16, low: u16| Ipv4Addr::from_bits((u32::from(high) << 16) | u32::from(low));
    let mut add = |v4: Ipv4Addr| faces.push(IpAddr::V4(v4));
    match [a, b, c, d, e, f] {
        // `::` and `::1` are themselves.
        [0, 0, 0, 0, 0, 0] if g == 0 && h <= 1 => {}
        // IPv4-compatible and IPv4-mapped, translated (RFC 2765), NAT64.
        [0, 0, 0, 0, 0, 0 | 0xffff] | [0, 0, 0, 0, 0xffff, 0] | [0x64, 0xff9b, 0, 0, 0, 0] => {
            add(v4(g, h));
        }
        // NAT64 of a local prefix (RFC 8215), in each length that RFC 6052 knows for it; where zeros are read
        // it is another length.
        [0x64, 0xff9b, 1, ..] => {
            let lengths = [
                v4(d, (e << 8) | (f >> 8)),
                v4((d << 8) | (e & 0xff), f),
                v4(((e & 0xff) << 8) | (f >> 8), (f << 8) | (g >> 8)),
                v4(g, h),
            ];
            let read = |v4: &Ipv4Addr| v4.octets() > [0, 255, 255, 255];
            lengths.into_iter().filter(read).for_each(&mut add);
        }
        // 6to4.
        [0x2002, ..] => add(v4(b, c)),
        // Teredo: its server, and the client with all bits turned.
        [0x2001, 0, ..] => {
            add(v4(c, d));
            add(v4(!g, !h));
        }
        // ISATAP.
        [_, _, _, _, 0 | 0x200, 0x5efe] => add(v4(g, h)),
        _ => {}
    }
    faces
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::{Address, EndpointUrl};

    fn check(policy: &AddressPolicy, address: &str) -> Result<(), Blocked> {
        policy.check(SocketAddr::new(address.parse().unwrap(), 8000))
    }

    /// However an address is written in a url, it is the same one by the time it is checked.
    #[test]
    fn addresses_in_every_spelling_are_seen_through() {
        for url in [
            "http://169.254.169.254",
            "http://2852039166",
            "http://0xa9fea9fe",
            "http://0xa9.0xfe.0xa9.0xfe",
            "http://0251.0376.0251.0376",
            "http://0251.254.0xa9.254",
            "http://169.254.43518",
            "http://169.16689662",
            "http://169.254.169.254.",
            "http://\u{ff11}69.254.169.254",
            "http://169\u{3002}254\u{3002}169\u{3002}254",
            "http://%31%36%39.254.169.254",
            "http://[::ffff:169.254.169.254]",
            "http://[::ffff:a9fe:a9fe]",
            "http://[0:0:0:0:0:ffff:a9fe:a9fe]",
        ] {
            let url = EndpointUrl::parse(url).unwrap();
            let Address::Host(host, port) = url.address() else {
                panic!("{url}")
            };
            let to = SocketAddr::new(host.parse().unwrap(), port);
            let found = AddressPolicy::default().check(to);
            assert_eq!(found, Err(Blocked::LinkLocal), "{url}");
        }
    }

    #[test]
    fn what_no_engine_has_is_blocked_in_every_dress() {
        use Blocked::{LinkLocal, Loopback, Metadata, Multicast, Reserved, Unspecified};
        for (address, why) in [
            ("169.254.169.254", LinkLocal),
            ("169.254.170.2", LinkLocal),
            ("169.254.0.1", LinkLocal),
            ("fe80::1", LinkLocal),
            ("febf::1", LinkLocal),
            ("100.100.100.200", Metadata),
            ("168.63.129.16", Metadata),
            ("192.0.0.192", Metadata),
            ("fd00:ec2::254", Metadata),
            ("fd20:ce::254", Metadata),
            ("::ffff:100.100.100.200", Metadata),
            ("127.0.0.1", Loopback),
            ("127.255.255.254", Loopback),
            ("::1", Loopback),
            ("::ffff:127.0.0.1", Loopback),
            ("224.0.0.1", Multicast),
            ("239.255.255.255", Multicast),
            ("ff02::1", Multicast),
            ("::ffff:224.0.0.1", Multicast),
            ("0.0.0.0", Unspecified),
            ("0.1.2.3", Unspecified),
            ("::", Unspecified),
            ("::ffff:0.0.0.0", Unspecified),
            ("240.0.0.1", Reserved),
            ("255.255.255.255", Reserved),
            // IPv4-compatible, translated, NAT64 of both prefixes.
            ("::169.254.169.254", LinkLocal),
            ("::ffff:0:169.254.169.254", LinkLocal),
            ("64:ff9b::169.254.169.254", LinkLocal),
            ("64:ff9b::7f00:1", Loopback),
            ("64:ff9b:1:a9fe:a9:fe00::", LinkLocal),
            ("64:ff9b:1::169.254.169.254", LinkLocal),
            // 6to4.
            ("2002:a9fe:a9fe::1", LinkLocal),
            ("2002:7f00:1::", Loopback),
            // Teredo: by its server, and by its client, whose bits are turned.
            ("2001:0:a9fe:a9fe::", LinkLocal),
            ("2001:0:808:808::5601:5601", LinkLocal),
            // ISATAP.
            ("2001:db8::5efe:169.254.169.254", LinkLocal),
            ("2001:db8::200:5efe:169.254.169.254", LinkLocal),
        ] {
            let found = check(&AddressPolicy::default(), address);
            assert_eq!(found, Err(why), "{address}");
        }
    }

    #[test]
    fn where_engines_are_is_fine() {
        for address in [
            "10.0.0.5",
            "172.16.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "8.8.8.8",
            "fd12:3456::1",
            "2606:4700::1111",
            "2001:db8::1",
            "64:ff9b::10.0.0.5",
            "64:ff9b:1::10.0.0.5",
            "64:ff9b:1:a00:0:500::",
            "2002:a00:5::1",
            "::ffff:10.0.0.5",
        ] {
            assert_eq!(
                check(&AddressPolicy::default(), address),
                Ok(()),
                "{address}"
            );
        }
    }

    #[test]
    fn names_of_metadata_services_are_blocked_however_they_are_written() {
        let policy = AddressPolicy::default();
        for name in [
            "metadata.google.internal",
            "Metadata.Google.Internal.",
            "metadata",
        ] {
            assert_eq!(policy.check_name(name), Err(Blocked::Metadata), "{name}");
        }
        for name in ["vllm", "metadata.example.com", "localhost"] {
            assert_eq!(policy.check_name(name), Ok(()), "{name}");
        }
    }

    #[test]
    fn what_is_allowed_is_what_was_said_and_no_more() {
        let policy = AddressPolicy {
            allowed: vec!["169.254.7.0/24".parse().unwrap(), "::1".parse().unwrap()],
            ..AddressPolicy::default()
        };
        assert_eq!(check(&policy, "169.254.7.9"), Ok(()));
        assert_eq!(check(&policy, "169.254.8.9"), Err(Blocked::LinkLocal));
        assert_eq!(check(&policy, "::1"), Ok(()));
        assert_eq!(check(&policy, "127.0.0.1"), Err(Blocked::Loopback));
        // The IPv6 dress of an allowed address is no other thing.
        assert_eq!(check(&policy, "64:ff9b::169.254.7.9"), Ok(()));
        let loopback = AddressPolicy {
            loopback: true,
            ..AddressPolicy::default()
        };
        assert_eq!(check(&loopback, "127.0.0.1"), Ok(()));
        assert_eq!(check(&loopback, "::ffff:127.0.0.1"), Ok(()));
        assert_eq!(check(&loopback, "0.0.0.0"), Err(Blocked::Unspecified));
    }

    #[test]
    fn the_own_port_is_never_dialled() {
        let policy = |own: &str| AddressPolicy {
            loopback: true,
            allowed: vec!["0.0.0.0/0".parse().unwrap()],
            own: own.parse().ok(),
        };
        let own = policy("127.0.0.1:8000");
        assert_eq!(check(&own, "127.0.0.1"), Err(Blocked::Own));
        assert_eq!(check(&own, "::ffff:127.0.0.1"), Err(Blocked::Own));
        assert_eq!(check(&own, "127.0.0.2"), Ok(()));
        assert_eq!(own.check("127.0.0.1:8001".parse().unwrap()), Ok(()));
        assert_eq!(
            check(&policy("0.0.0.0:8000"), "127.0.0.9"),
            Err(Blocked::Own)
        );
        assert_eq!(check(&policy("0.0.0.0:8000"), "10.0.0.5"), Ok(()));
    }

    #[test]
    fn blocks_are_read_and_bad_ones_named() {
        for (text, inside, outside) in [
            ("10.1.0.0/16", "10.1.255.1", "10.2.0.0"),
            ("0.0.0.0/0", "255.1.1.1", "::1"),
            ("10.0.0.5", "10.0.0.5", "10.0.0.6"),
            ("fe80::/10", "febf::1", "fec0::1"),
            ("::/0", "ff02::1", "1.1.1.1"),
        ] {
            let block: Cidr = text.parse().unwrap();
            assert!(block.contains(inside.parse().unwrap()), "{text}");
            assert!(!block.contains(outside.parse().unwrap()), "{text}");
        }
        for bad in [
            "",
            "x",
            "10.0.0.0/33",
            "10.0.0.0/",
            "::/129",
            "0x7f.1/8",
            "10.0.0.0/-1",
        ] {
            let error = bad.parse::<Cidr>().unwrap_err().to_string();
            assert!(error.contains("169.254.7.0/24"), "{error}");
        }
    }
}
