package gitrepo

import (
	"net/netip"
	"syscall"

	"github.com/maestro-cd/maestro/internal/fault"
)

// special are the networks that netip does not know by a name and that lead to this
// machine, to a private network, or to an IPv4 address in another guise.
var special = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"), // behind a provider's NAT
	netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("240.0.0.0/4"),
	netip.MustParsePrefix("::/96"),
	netip.MustParsePrefix("64:ff9b::/96"), // NAT64
	netip.MustParsePrefix("64:ff9b:1::/48"),
	netip.MustParsePrefix("2002::/16"), // 6to4
	netip.MustParsePrefix("fec0::/10"),
}

// refusePrivate looks at the address of a connection when names have been resolved,
// so that no spelling and no name server leads past it.
func refusePrivate(_, address string, _ syscall.RawConn) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return fault.New(fault.Invalid, "its address %s is not understood", quote(address))
	}
	ip := at.Addr().Unmap().WithZone("")
	private := !ip.IsGlobalUnicast() || ip.IsPrivate()
	for _, p := range special {
		private = private || p.Contains(ip)
	}
	if private {
		return fault.New(fault.Invalid, "its host is %s, which is no public address", ip)
	}
	return nil
}
