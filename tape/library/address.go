package library

import (
	"net"
	"net/url"
	"strings"

	"github.com/holdfast-backup/holdfast"
)

// Bounds of addresses.
const (
	maxAddress = 4096
	maxPaths   = 256
)

// An Address says where a tape library is. Two addresses are the same library's if Key is the same.
type Address struct {
	Scheme string // iscsi, sg, or one that a Keeper was given
	Portal string // iscsi: host:port
	Target string // iscsi: the target's name
	// Rest is what follows the scheme's colon where it is none of ours, and for sg: the first device file, serial:NUMBER or all.
	Rest   string
	Drives []string // sg: device files of the drives; empty: all of this machine, of which the changer tells its own by serial number
	// User and the files of secrets are for CHAP. Digests asks for checksums of headers and data.
	User, SecretFile, TargetSecretFile string
	Digests                            bool
	Initiator                          string // our name; empty: Options has it
}

func badAddress(format string, args ...any) error {
	return holdfast.Errorf(holdfast.Invalid, "read tape library address", format, args...).
		Advise("write iscsi://HOST[:PORT]/TARGET, sg:/dev/sgN or sg:serial:NUMBER")
}

// Parse reads an address:
//
//	iscsi://HOST[:PORT]/TARGET[?user=NAME&secret-file=FILE&target-secret-file=FILE&digests=on&initiator=NAME]
//	sg:/dev/sgN[,/dev/sgM...]     the changer, or a drive of its own, and drives
//	sg:serial:NUMBER              the changer with a serial number, whatever the system calls it today
//	sg:all                        every changer and drive of this machine
//	SCHEME:...                    what else a Keeper knows
//
// Secrets are never part of an address: only the names of the files that hold them are.
func Parse(s string) (Address, error) {
	scheme, rest, ok := strings.Cut(s, ":")
	switch {
	case len(s) > maxAddress || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return Address{}, badAddress("an address of %d bytes, or with control characters", len(s))
	case !ok || scheme == "" || rest == "":
		return Address{}, badAddress("%q is no address of a tape library", s)
	case scheme == "iscsi":
		return parseISCSI(s)
	case scheme == "sg":
		return parseSG(rest)
	}
	return Address{Scheme: scheme, Rest: rest}, nil
}

func parseISCSI(s string) (Address, error) {
	u, err := url.Parse(s)
	if err != nil {
		return Address{}, badAddress("%w", err)
	}
	a := Address{Scheme: "iscsi", Portal: u.Host, Target: strings.TrimPrefix(u.Path, "/")}
	if u.Hostname() == "" || a.Target == "" || strings.Contains(a.Target, "/") || u.User != nil || u.Fragment != "" {
		return Address{}, badAddress("an iSCSI address has a host and the name of a target, and no user or password before the host")
	}
	if u.Port() == "" {
		a.Portal = net.JoinHostPort(u.Hostname(), "3260")
	}
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return Address{}, badAddress("%w", err)
	}
	for k, v := range q {
		if len(v) != 1 {
			return Address{}, badAddress("%s twice", k)
		}
		switch k {
		case "user":
			a.User = v[0]
		case "secret-file":
			a.SecretFile = v[0]
		case "target-secret-file":
			a.TargetSecretFile = v[0]
		case "initiator":
			a.Initiator = v[0]
		case "digests":
			if a.Digests = v[0] == "on"; !a.Digests && v[0] != "off" {
				return Address{}, badAddress("digests are on or off")
			}
		default:
			return Address{}, badAddress("iSCSI addresses know no %q", k)
		}
	}
	if (a.User == "") != (a.SecretFile == "") || a.TargetSecretFile != "" && a.User == "" {
		return Address{}, badAddress("user and secret-file go together, and target-secret-file only with them")
	}
	return a, nil
}

func parseSG(rest string) (Address, error) {
	if sn, ok := strings.CutPrefix(rest, "serial:"); ok {
		if sn == "" {
			return Address{}, badAddress("no serial number")
		}
		return Address{Scheme: "sg", Rest: rest}, nil
	}
	if rest == "all" {
		return Address{Scheme: "sg", Rest: rest}, nil
	}
	paths := strings.Split(rest, ",")
	for i, p := range paths {
		if !strings.HasPrefix(p, "/") || i >= maxPaths {
			return Address{}, badAddress("%q is no absolute path of a device file, or there are more than %d", p, maxPaths)
		}
	}
	return Address{Scheme: "sg", Rest: paths[0], Drives: paths[1:]}, nil
}

// Key names the device that the address leads to, without how to log in.
func (a Address) Key() string {
	if a.Scheme == "iscsi" {
		return "iscsi://" + a.Portal + "/" + a.Target
	}
	return a.Scheme + ":" + a.Rest
}

// String returns the address as Parse reads it.
func (a Address) String() string {
	if a.Scheme != "iscsi" {
		return a.Scheme + ":" + strings.Join(append([]string{a.Rest}, a.Drives...), ",")
	}
	q := url.Values{}
	for k, v := range map[string]string{"user": a.User, "secret-file": a.SecretFile, "target-secret-file": a.TargetSecretFile, "initiator": a.Initiator} {
		if v != "" {
			q.Set(k, v)
		}
	}
	if a.Digests {
		q.Set("digests", "on")
	}
	s := a.Key()
	if len(q) > 0 {
		s += "?" + q.Encode()
	}
	return s
}
