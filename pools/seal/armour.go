package seal

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"strings"

	"github.com/holdfast-backup/holdfast"
)

// The printed form of a key: four lines of eight bytes, each with a checksum of its own, so that whoever types them from paper
// learns which line is wrong; and a line that tells keys apart.
//
//	1 XXXX-XXXX-XXXX-XXXX
//	2 XXXX-XXXX-XXXX-XXXX
//	3 XXXX-XXXX-XXXX-XXXX
//	4 XXXX-XXXX-XXXX-XXXX
//	key XXXX-XXXX
const (
	armourLines = 4
	lineBytes   = keyBytes / armourLines
	lineCheck   = 2
)

// letters has no I, L, O and U: they are taken for others.
const letters = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

// groups returns bytes, a multiple of five, in groups of four letters.
func groups(b []byte) string {
	var out strings.Builder
	var acc uint64
	n, count := 0, 0
	for _, x := range b {
		acc, n = acc<<8|uint64(x), n+8
		for n >= 5 {
			n -= 5
			if count > 0 && count%4 == 0 {
				out.WriteByte('-')
			}
			out.WriteByte(letters[acc>>n&31])
			count++
		}
	}
	return out.String()
}

// ungroup is the inverse of groups; it forgives case, spaces, missing dashes and the letters taken for others.
func ungroup(s string, want int) ([]byte, bool) {
	var out []byte
	var acc uint64
	n := 0
	for _, r := range strings.ToUpper(s) {
		switch r {
		case '-', ' ', '\t':
			continue
		case 'I', 'L':
			r = '1'
		case 'O':
			r = '0'
		}
		v := strings.IndexRune(letters, r)
		if v < 0 || len(out) > want {
			return nil, false
		}
		acc, n = acc<<5|uint64(v), n+5
		if n >= 8 {
			n -= 8
			out = append(out, byte(acc>>n))
		}
	}
	return out, len(out) == want && n == 0
}

func checkOfLine(no int, b []byte) []byte {
	sum := sha256.Sum256(append([]byte{'h', 'o', 'l', 'd', 'f', 'a', 's', 't', ' ', 'l', 'i', 'n', 'e', byte(no)}, b...))
	return sum[:lineCheck]
}

// Armour returns the printed form of the key, five lines.
func (k Key) Armour() []byte {
	var b bytes.Buffer
	for i := range armourLines {
		part := k[i*lineBytes : (i+1)*lineBytes]
		fmt.Fprintf(&b, "%d %s\n", i+1, groups(append(bytes.Clone(part), checkOfLine(i+1, part)...)))
	}
	fmt.Fprintf(&b, "key %s\n", k.Fingerprint())
	return b.Bytes()
}

// KeyFile returns the content of a key file: the printed form below a comment.
func (k Key) KeyFile() []byte {
	return append([]byte("# Holdfast pool key, version 1. Whoever has it can read the pool; without it nobody can. Keep a copy elsewhere.\n"), k.Armour()...)
}

// ParseKey reads a key in its printed form: from a key file, or typed from a sheet. Lines that begin with # are comments. The error is
// Invalid and names the line that is wrong.
func ParseKey(text []byte) (Key, error) {
	const op = "read key"
	var k Key
	bad := func(format string, args ...any) error {
		return holdfast.Errorf(holdfast.Invalid, op, format, args...).Advise("compare the key with the printed recovery sheet; it has four numbered lines and the line 'key'")
	}
	if len(text) > maxKeyFile {
		return k, bad("%d bytes are not a key", len(text))
	}
	seen, mark := 0, ""
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, rest, _ := strings.Cut(line, " ")
		if strings.EqualFold(name, "key") && seen == armourLines && mark == "" {
			mark = rest
			continue
		}
		if seen == armourLines || name != fmt.Sprint(seen+1) {
			return k, bad("line %d of the key is missing, or out of order", seen+1)
		}
		b, ok := ungroup(rest, lineBytes+lineCheck)
		if !ok || !bytes.Equal(b[lineBytes:], checkOfLine(seen+1, b[:lineBytes])) {
			return Key{}, bad("line %d of the key is wrong", seen+1)
		}
		copy(k[seen*lineBytes:], b)
		seen++
	}
	if seen < armourLines || mark == "" {
		return Key{}, bad("the key ends after %d of its lines", seen)
	}
	fp := k.Fingerprint()
	if b, ok := ungroup(mark, len(fp)); !ok || !bytes.Equal(b, fp[:]) {
		return Key{}, bad("the lines are of different keys")
	}
	return k, nil
}
