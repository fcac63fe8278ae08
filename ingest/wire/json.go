package wire

import (
	"bytes"
	"encoding/json"

	"github.com/holdfast-backup/holdfast"
)

// Bounds of JSON bodies beyond their length: what a short text may make the decoder allocate.
const (
	maxBrackets   = 4096    // objects and arrays: a manifest of 256 disks has about 600
	maxCommas     = 32768   // fields and elements: a manifest of 256 disks has about 8000
	maxTokenBytes = 2 << 10 // of one change tracking id
)

// encodeJSON encodes the messages that are JSON, cut into frames.
func encodeJSON(m *Message) ([]*frame, error) {
	const op = "encode message"
	var b []byte
	var err error
	switch body := m.Body.(type) {
	case Begin:
		b, err = marshal(body, m.Type == TypeBegin || m.Type == TypeOpenSet)
	case Began:
		b, err = marshal(body, m.Type == TypeBegan)
	case holdfast.Manifest:
		b, err = marshal(body, m.Type == TypeStart || m.Type == TypeCommit)
	case Committed:
		b, err = marshal(body, m.Type == TypeCommitted)
	case Tracking:
		b, err = marshal(body, m.Type == TypeTracking)
	case SetOpened:
		b, err = marshal(body, m.Type == TypeSetOpened)
	case Failure:
		b, err = appendFailure(body), nil
		if m.Type != TypeFail {
			err = holdfast.Errorf(holdfast.Invalid, op, "a failure in a %v message", m.Type)
		}
	default:
		err = holdfast.Errorf(holdfast.Invalid, op, "a %v message with body %T", m.Type, m.Body)
	}
	if err != nil {
		return nil, err
	}
	if most, _ := m.Type.limit(); len(b) > most {
		return nil, holdfast.Errorf(holdfast.Invalid, op, "a %v message of %d bytes; at most %d are allowed", m.Type, len(b), most)
	}
	if _, err := parseJSON(m.Type, b); err != nil {
		return nil, err
	}
	return fragments(b), nil
}

// fragments cuts a payload into frames.
func fragments(b []byte) []*frame {
	var fs []*frame
	for {
		n := min(len(b), MaxFrame)
		f := newFrame(n)
		copy(f.payload(), b)
		f.measure()
		fs = append(fs, f)
		if b = b[n:]; len(b) == 0 {
			return fs
		}
	}
}

// marshal returns the canonical JSON of v; fits says whether it belongs into the message.
func marshal[T any](v T, fits bool) ([]byte, error) {
	const op = "encode message"
	if !fits {
		return nil, holdfast.Errorf(holdfast.Invalid, op, "a %T in a message of another type", v)
	}
	b, err := json.Marshal(v)
	if err != nil {
		return nil, holdfast.Errorf(holdfast.Invalid, op, "%w", err)
	}
	if !bytes.Contains(b, []byte(`\ufffd`)) {
		return b, nil
	}
	// Bytes that are not UTF-8 were written as an escape, which reads back as a character that is written as itself.
	var again T
	if err := json.Unmarshal(b, &again); err != nil {
		return nil, holdfast.Errorf(holdfast.Internal, op, "%w", err)
	}
	if b, err = json.Marshal(again); err != nil {
		return nil, holdfast.Errorf(holdfast.Internal, op, "%w", err)
	}
	return b, nil
}

// appendFailure encodes a failure so that it fits an early frame, whatever its texts are.
func appendFailure(f Failure) []byte {
	for n := maxText; ; n /= 2 {
		f.Message, f.Hint = clipTo(f.Message, n), clipTo(f.Hint, n)
		b, err := json.Marshal(f)
		if err != nil {
			panic(err) // two strings and a number
		}
		if len(b) <= maxEarly {
			return b
		}
	}
}

func parseJSON(t Type, p []byte) (any, error) {
	if err := boundJSON(t, p); err != nil {
		return nil, err
	}
	switch t {
	case TypeBegin, TypeOpenSet:
		return strict(t, p, func(b *Begin) error { return nil })
	case TypeBegan:
		return strict(t, p, checkBegan)
	case TypeStart, TypeCommit:
		return strict(t, p, (*holdfast.Manifest).Check)
	case TypeCommitted:
		return strict(t, p, func(c *Committed) error { return c.Manifest.Check() })
	case TypeTracking:
		return strict(t, p, func(k *Tracking) error { return checkTokens(k.Tokens) })
	case TypeSetOpened:
		return strict(t, p, func(s *SetOpened) error {
			if err := checkKey(s.DomainKey); err != nil {
				return err
			}
			return s.Manifest.Check()
		})
	case TypeFail:
		return parseFailure(t, p)
	}
	return nil, violated(holdfast.Unsupported, "unknown message type %d", uint8(t))
}

func parseFailure(t Type, p []byte) (any, error) {
	return strict(t, p, func(f *Failure) error { return nil })
}

// strict decodes canonical JSON: no unknown field, and the same bytes when encoded again.
func strict[T any](t Type, p []byte, check func(*T) error) (any, error) {
	var v T
	dec := json.NewDecoder(bytes.NewReader(p))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&v); err != nil {
		return nil, malformed(t, "%w", err)
	}
	if err := check(&v); err != nil {
		return nil, malformed(t, "%w", err)
	}
	again, err := json.Marshal(v)
	if err != nil {
		return nil, malformed(t, "%w", err)
	}
	if !bytes.Equal(again, p) {
		return nil, malformed(t, "not in canonical form")
	}
	return v, nil
}

// boundJSON counts what the decoder would allocate for.
func boundJSON(t Type, p []byte) error {
	brackets, commas := 0, 0
	inString := false
	for i := 0; i < len(p); i++ {
		c := p[i]
		if inString {
			// The long strings are base64: look for their end only.
			j := bytes.IndexAny(p[i:min(len(p), i+256)], `"\`)
			if j < 0 {
				i += min(len(p)-i, 256) - 1
				continue
			}
			i += j
			if p[i] == '\\' {
				i++
			} else {
				inString = false
			}
			continue
		}
		switch c {
		case '"':
			inString = true
		case '{', '[':
			brackets++
		case ',':
			commas++
		}
	}
	if brackets > maxBrackets || commas > maxCommas {
		return malformed(t, "%d objects and arrays with %d commas; at most %d and %d are allowed", brackets, commas, maxBrackets, maxCommas)
	}
	return nil
}

func checkBegan(b *Began) error {
	const op = "check answer"
	if err := b.Chunking.Check(); err != nil {
		return err
	}
	if err := checkKey(b.DomainKey); err != nil {
		return err
	}
	if err := checkTokens(b.Tokens); err != nil {
		return err
	}
	if b.Set.IsZero() {
		return holdfast.Errorf(holdfast.Invalid, op, "no set id")
	}
	if b.Parent != nil {
		return b.Parent.Check()
	}
	return nil
}

func checkKey(k []byte) error {
	if len(k) != 32 {
		return holdfast.Errorf(holdfast.Invalid, "check domain key", "%d bytes; it has 32", len(k))
	}
	return nil
}

func checkTokens(tokens map[holdfast.DiskID]string) error {
	const op = "check tracking ids"
	if len(tokens) > holdfast.MaxDisks {
		return holdfast.Errorf(holdfast.Invalid, op, "%d of them; at most %d are allowed", len(tokens), holdfast.MaxDisks)
	}
	for _, s := range tokens {
		if len(s) > maxTokenBytes {
			return holdfast.Errorf(holdfast.Invalid, op, "one has %d bytes; at most %d are allowed", len(s), maxTokenBytes)
		}
	}
	return nil
}
