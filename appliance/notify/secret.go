package notify

// A Secret is a password, token or key. However it is printed or encoded it shows as ***, and the empty one as nothing; only Reveal
// gives it out. It is read from plain text.
type Secret string

// mask is what a secret shows as.
const mask = "***"

func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return mask
}

// GoString implements fmt.GoStringer.
func (s Secret) GoString() string { return `"` + s.String() + `"` }

// MarshalText implements encoding.TextMarshaler.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Secret) UnmarshalText(text []byte) error {
	*s = Secret(text)
	return nil
}

// Reveal returns the secret itself.
func (s Secret) Reveal() string { return string(s) }
