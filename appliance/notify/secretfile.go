package notify

import (
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/holdfast-backup/holdfast"
)

// maxSecret bounds a secret that is read from a file, in bytes.
const maxSecret = 64 << 10

// secretField is one secret of a target: kept with it, or in a file that it names.
type secretField struct {
	name  string
	value *Secret
	file  *string
}

// secretFields lists the target's secrets, always in the same order.
func (t *Target) secretFields() []secretField {
	var out []secretField
	if m := t.Mail; m != nil {
		out = append(out, secretField{"password", &m.Password, &m.PasswordFile})
	}
	if w := t.Webhook; w != nil {
		out = append(out, secretField{"key", &w.Key, &w.KeyFile}, secretField{"token", &w.Token, &w.TokenFile})
	}
	if n := t.Ntfy; n != nil {
		out = append(out, secretField{"token", &n.Token, &n.TokenFile})
	}
	if g := t.Gotify; g != nil {
		out = append(out, secretField{"token", &g.Token, &g.TokenFile})
	}
	return out
}

// Inline names the secrets that are kept with the target and not in a file of their own.
func (t *Target) Inline() []string {
	var out []string
	for _, s := range t.secretFields() {
		if *s.value != "" {
			out = append(out, s.name)
		}
	}
	return out
}

// A Revealed is a secret in the clear.
type Revealed struct{ Name, Value string }

// Reveal lists the target's secrets in the clear, for a request to the appliance; never for display.
func (t *Target) Reveal() []Revealed {
	var out []Revealed
	for _, s := range t.secretFields() {
		if *s.value != "" {
			out = append(out, Revealed{s.name, s.value.Reveal()})
		}
	}
	return out
}

// Masked names the secrets that are nothing but ***.
func (t *Target) Masked() []string {
	var out []string
	for _, s := range t.secretFields() {
		if *s.value == mask {
			out = append(out, s.name)
		}
	}
	return out
}

func (t *Target) checkFiles() error {
	for _, s := range t.secretFields() {
		switch {
		case *s.file == "":
		case *s.value != "":
			return invalid("%s: both %s and %s_file are given", t.Name, s.name, s.name)
		case !filepath.IsAbs(*s.file) || strings.ContainsAny(*s.file, "\x00\r\n"):
			return invalid("%s: the %s_file %.200q is not an absolute path", t.Name, s.name, *s.file)
		}
	}
	return nil
}

// ready returns the target's sender with the secrets that are in files read: they may have changed since the last attempt. The
// target itself stays as it is.
func (t Target) ready() (sender, error) {
	t = t.clone()
	for _, s := range t.secretFields() {
		if *s.file == "" {
			continue
		}
		v, err := readSecret(*s.file)
		if err != nil {
			return nil, err
		}
		*s.value = v
	}
	s, _ := t.sender()
	return s, nil
}

// clone copies what holds secrets.
func (t Target) clone() Target {
	t.Mail, t.Webhook, t.Ntfy, t.Gotify = copied(t.Mail), copied(t.Webhook), copied(t.Ntfy), copied(t.Gotify)
	return t
}

func copied[T any](p *T) *T {
	if p == nil {
		return nil
	}
	c := *p
	return &c
}

// readSecret reads a secret: the file's text without line ends behind it. What cannot be read now may be there at the next attempt.
func readSecret(name string) (Secret, error) {
	const op = "read secret"
	f, err := os.Open(name)
	if err != nil {
		return "", holdfast.Errorf(holdfast.Offline, op, "%w", err).Advise("the file must be readable by the appliance")
	}
	defer f.Close() //nolint:errcheck // it was only read
	b, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err != nil {
		return "", holdfast.Errorf(holdfast.Offline, op, "%w", err)
	}
	s := strings.TrimRight(string(b), "\r\n")
	if s == "" || len(b) > maxSecret || strings.ContainsAny(s, "\r\n\x00") {
		return "", holdfast.Errorf(holdfast.Invalid, op, "%s does not hold one line of 1 to %d bytes", name, maxSecret)
	}
	return Secret(s), nil
}
