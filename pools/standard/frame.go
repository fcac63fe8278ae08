package standard

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"

	"github.com/holdfast-backup/holdfast"
)

// A frame is text that people can read and programs can check: a title line, named parts with their length and BLAKE3, and a last
// line with the BLAKE3 of all before it. The pool record and set records are frames.
type frame struct {
	title string // one line
	parts []part
}

type part struct {
	name string
	body []byte
}

const maxTitle = 512

// sum is BLAKE3 under the zero key: it finds accidents, not forgery.
func sum(b []byte) holdfast.Digest { return holdfast.Domain{}.Hasher().Sum(b) }

func (f *frame) encode() []byte {
	var b bytes.Buffer
	b.WriteString(f.title + "\n")
	for _, p := range f.parts {
		fmt.Fprintf(&b, "%s %d %s\n", p.name, len(p.body), sum(p.body))
		b.Write(p.body)
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "end %s\n", sum(b.Bytes()))
	return b.Bytes()
}

// parseFrame reads a frame of exactly the named parts. What it accepts, encode writes again byte for byte. The error is Corrupt.
func parseFrame(op string, b []byte, names ...string) (*frame, error) {
	bad := func(what string) error {
		return holdfast.Errorf(holdfast.Corrupt, op, "the record is damaged: %s", what)
	}
	rest := b
	line := func() (string, bool) {
		i := bytes.IndexByte(rest[:min(len(rest), maxTitle)], '\n')
		if i < 0 {
			return "", false
		}
		s := string(rest[:i])
		rest = rest[i+1:]
		return s, true
	}
	f := &frame{}
	var ok bool
	if f.title, ok = line(); !ok {
		return nil, bad("no title")
	}
	for _, name := range names {
		s, _ := line()
		words := strings.Split(s, " ")
		if len(words) != 3 || words[0] != name {
			return nil, bad("no part " + name)
		}
		n, err := strconv.ParseUint(words[1], 10, 32)
		if err != nil || uint64(len(rest)) < n+1 || rest[n] != '\n' {
			return nil, bad("the length of part " + name)
		}
		body := rest[:n:n]
		if sum(body).String() != words[2] {
			return nil, bad("the checksum of part " + name)
		}
		f.parts, rest = append(f.parts, part{name, body}), rest[n+1:]
	}
	if !bytes.Equal(f.encode(), b) {
		return nil, bad("the checksum at the end")
	}
	return f, nil
}
