package wire

import (
	"crypto/subtle"
	"fmt"
	"slices"
	"strings"

	"github.com/holdfast-backup/holdfast"
)

// versions lists what this build speaks, newest first, one line each, with the checksum of the golden frames
// (testdata/golden): whoever changes a message makes a new line, and keeps the old one readable or drops it on purpose.
var versions = []struct {
	number uint16
	golden string
	what   string
}{
	{1, "76252e151ccb90f8", "first light: backup, restore, resumption"},
}

// Versions returns the protocol versions this build speaks, newest first.
func Versions() []uint16 {
	vs := make([]uint16, len(versions))
	for i, v := range versions {
		vs[i] = v.number
	}
	return vs
}

const maxVersions = 32 // in one Hello

// helloMagic opens every Hello, so that a stranger's bytes are recognised as such. It and the version list never change.
const helloMagic = "HFDT"

type token [32]byte

func (t token) equal(o token) bool { return subtle.ConstantTimeCompare(t[:], o[:]) == 1 }

// A hello opens a connection. The link id is zero for a new link.
type hello struct {
	versions []uint16 // newest first
	link     holdfast.ID
	token    token
	received uint32 // highest sequence number received, in order
	window   uint32 // bytes it is willing to hold unconsumed
}

// A welcome answers a hello.
type welcome struct {
	version  uint16
	link     holdfast.ID
	token    token // what resumes the link
	received uint32
	window   uint32
}

func (h *hello) append(b []byte) []byte {
	b = append(b, helloMagic...)
	b = append(b, byte(len(h.versions)))
	for _, v := range h.versions {
		b = le.AppendUint16(b, v)
	}
	b = append(append(b, h.link[:]...), h.token[:]...)
	return le.AppendUint32(le.AppendUint32(b, h.received), h.window)
}

// parseHelloVersions reads the part of a Hello that is the same in every version, and returns the rest.
func parseHelloVersions(p []byte) ([]uint16, []byte, error) {
	if len(p) < 5 || string(p[:4]) != helloMagic {
		return nil, nil, violated(holdfast.Invalid, "this is not a Holdfast data connection")
	}
	n := int(p[4])
	if n == 0 || n > maxVersions || len(p) < 5+2*n {
		return nil, nil, malformed(TypeHello, "%d versions in %d bytes", n, len(p))
	}
	vs := make([]uint16, n)
	for i := range vs {
		vs[i] = le.Uint16(p[5+2*i:])
		if i > 0 && vs[i] >= vs[i-1] {
			return nil, nil, malformed(TypeHello, "versions are not in descending order")
		}
	}
	return vs, p[5+2*n:], nil
}

func parseHello(p []byte) (hello, error) {
	vs, rest, err := parseHelloVersions(p)
	if err != nil {
		return hello{}, err
	}
	h := hello{versions: vs}
	if len(rest) != 16+32+8 {
		return hello{}, malformed(TypeHello, "%d bytes after the versions", len(rest))
	}
	copy(h.link[:], rest)
	copy(h.token[:], rest[16:])
	h.received, h.window = le.Uint32(rest[48:]), le.Uint32(rest[52:])
	return h, nil
}

func (w *welcome) append(b []byte) []byte {
	b = le.AppendUint16(b, w.version)
	b = append(append(b, w.link[:]...), w.token[:]...)
	return le.AppendUint32(le.AppendUint32(b, w.received), w.window)
}

func parseWelcome(p []byte) (welcome, error) {
	var w welcome
	if len(p) != 2+16+32+8 {
		return w, malformed(TypeWelcome, "it has %d bytes", len(p))
	}
	w.version = le.Uint16(p)
	copy(w.link[:], p[2:])
	copy(w.token[:], p[18:])
	w.received, w.window = le.Uint32(p[50:]), le.Uint32(p[54:])
	return w, nil
}

// choose returns the highest version in both lists, or Unsupported naming both.
func choose(ours, theirs []uint16) (uint16, error) {
	for _, v := range ours { // newest first
		if slices.Contains(theirs, v) {
			return v, nil
		}
	}
	return 0, holdfast.Errorf(holdfast.Unsupported, "agree on a version", "no common protocol version: this end speaks %s, the other %s",
		listVersions(ours), listVersions(theirs)).Advise("update the older of agent and appliance")
}

func listVersions(vs []uint16) string {
	s := make([]string, len(vs))
	for i, v := range vs {
		s[i] = fmt.Sprint(v)
	}
	return strings.Join(s, ", ")
}
