package notify

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"net"
	"net/mail"
	"net/url"
	"strings"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/internal/clock"
)

// A Target is a place that events are told to. Exactly one of Mail to Syslog is given.
type Target struct {
	Name     string  `json:"name"` // unique; letters, digits, - _ . of at most 64 characters
	Disabled bool    `json:"disabled,omitzero"`
	Rules    []Rule  `json:"rules,omitempty"`  // none: every event
	Digest   *Digest `json:"digest,omitempty"` // nil: everything at once
	Flood    *Flood  `json:"flood,omitempty"`  // nil: 20 in 10 minutes

	Mail    *Mail    `json:"mail,omitempty"`
	Webhook *Webhook `json:"webhook,omitempty"`
	Ntfy    *Ntfy    `json:"ntfy,omitempty"`
	Gotify  *Gotify  `json:"gotify,omitempty"`
	Syslog  *Syslog  `json:"syslog,omitempty"`
}

// A Digest collects what is less than an alarm and sends it once a day. Nothing collected, nothing sent.
type Digest struct {
	At  string `json:"at"`           // "07:00", in the notifier's zone
	All bool   `json:"all,omitzero"` // alarms wait for the digest too
}

// Flood bounds what a target gets: Max messages in Minutes, then one summary of the rest when the time is over.
type Flood struct {
	Max     int `json:"max"`
	Minutes int `json:"minutes"`
}

var defaultFlood = Flood{Max: 20, Minutes: 10}

// Bounds of a configuration.
const (
	maxTargets = 100
	maxRules   = 100
	maxRcpts   = 50
	maxConfig  = 256 << 10 // bytes of a target's JSON
	maxText    = 64 << 10  // bytes of a template or certificate
)

// env is what senders need of the Notifier.
type env struct {
	clock clock.Clock
	site  string
	dial  func(ctx context.Context, network, addr string) (net.Conn, error)
}

// sender is one kind of target. done names the parts (recipients) that were served by earlier attempts; send returns it with those
// that it served. A nil error means that all are. The kind of an error says whether trying again may help.
type sender interface {
	check() error
	send(ctx context.Context, v env, m *Message, done []string) ([]string, error)
}

func (t *Target) sender() (s sender, n int) {
	if t.Mail != nil {
		s, n = t.Mail, n+1
	}
	if t.Webhook != nil {
		s, n = t.Webhook, n+1
	}
	if t.Ntfy != nil {
		s, n = t.Ntfy, n+1
	}
	if t.Gotify != nil {
		s, n = t.Gotify, n+1
	}
	if t.Syslog != nil {
		s, n = t.Syslog, n+1
	}
	return s, n
}

func invalid(format string, args ...any) *holdfast.Error {
	return holdfast.Errorf(holdfast.Invalid, "check notification target", format, args...)
}

// Check returns an Invalid error where the target cannot work as it is.
func (t *Target) Check() error {
	if t.Name == "" || len(t.Name) > 64 || strings.Trim(strings.ToLower(t.Name), "abcdefghijklmnopqrstuvwxyz0123456789-_.") != "" {
		return invalid("the name %.80q is not of 1 to 64 letters, digits, - _ and .", t.Name)
	}
	s, n := t.sender()
	if n != 1 {
		return invalid("%s: exactly one of mail, webhook, ntfy, gotify and syslog is needed, and there are %d", t.Name, n)
	}
	if len(t.Rules) > maxRules {
		return invalid("%s: %d rules; at most %d are allowed", t.Name, len(t.Rules), maxRules)
	}
	if d := t.Digest; d != nil {
		if m, ok := minutes(d.At); !ok || m == dayMinutes {
			return invalid("%s: the digest's time %q is not like 07:00", t.Name, d.At)
		}
	}
	if f := t.Flood; f != nil && (f.Max < 1 || f.Max > 10000 || f.Minutes < 1 || f.Minutes > 7*dayMinutes) {
		return invalid("%s: flood control needs 1 to 10000 messages in 1 to %d minutes", t.Name, 7*dayMinutes)
	}
	if err := t.checkFiles(); err != nil {
		return err
	}
	return s.check()
}

func (t *Target) flood() (most int, per time.Duration) {
	f := t.Flood
	if f == nil {
		f = &defaultFlood
	}
	return f.Max, time.Duration(f.Minutes) * time.Minute
}

// sealed is how a target is stored: with its secrets beside it, which Target's own JSON masks.
type sealed struct {
	Target
	Secrets []string `json:"secrets,omitempty"`
}

// Kind names the target's kind: mail, webhook, ntfy, gotify or syslog.
func (t *Target) Kind() string {
	switch {
	case t.Mail != nil:
		return "mail"
	case t.Webhook != nil:
		return "webhook"
	case t.Ntfy != nil:
		return "ntfy"
	case t.Gotify != nil:
		return "gotify"
	case t.Syslog != nil:
		return "syslog"
	}
	return ""
}

// secrets lists the target's secrets, always in the same order.
func (t *Target) secrets() []*Secret {
	var out []*Secret
	for _, s := range t.secretFields() {
		out = append(out, s.value)
	}
	return out
}

// Seal returns the target as JSON with its secrets in the clear: for a private store only, never for display.
func (t Target) Seal() ([]byte, error) {
	s := sealed{Target: t}
	for _, p := range t.secrets() {
		s.Secrets = append(s.Secrets, p.Reveal())
	}
	return json.Marshal(s)
}

// Unseal reads what Seal wrote, and also a target as an admin writes it, with the secrets in their places. Unknown fields are refused;
// the target is not checked.
func Unseal(data []byte) (Target, error) {
	if len(data) > maxConfig {
		return Target{}, invalid("a target of %d bytes; at most %d are allowed", len(data), maxConfig)
	}
	var s sealed
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil {
		return Target{}, invalid("%w", err)
	}
	if ps := s.secrets(); s.Secrets != nil {
		if len(ps) != len(s.Secrets) {
			return Target{}, invalid("%d secrets are stored and %d are needed", len(s.Secrets), len(ps))
		}
		for i, p := range ps {
			*p = Secret(s.Secrets[i])
		}
	}
	return s.Target, nil
}

// KeepSecrets replaces every secret of t that is *** by the one of old: what an admin's editor shows can be sent back.
func (t *Target) KeepSecrets(old Target) {
	mine, theirs := t.secrets(), old.secrets()
	for i, p := range mine {
		if *p == mask && len(mine) == len(theirs) {
			*p = *theirs[i]
		}
	}
}

func checkURL(kind, text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
		return invalid("%s: %q is not an http or https address without user and password", kind, redactURL(text))
	}
	return nil
}

// redactURL cuts off what may hold a secret.
func redactURL(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return "(unreadable)"
	}
	if u.RawQuery != "" {
		u.RawQuery = mask
	}
	return u.Redacted()
}

func checkCA(kind, pem string) error {
	if _, err := pool(pem); err != nil || len(pem) > maxText {
		return invalid("%s: the CA is not a PEM certificate", kind)
	}
	return nil
}

// pool returns the certificates of a PEM text, nil (the system's) for the empty one.
func pool(pem string) (*x509.CertPool, error) {
	if pem == "" {
		return nil, nil
	}
	p := x509.NewCertPool()
	if !p.AppendCertsFromPEM([]byte(pem)) {
		return nil, invalid("no PEM certificate")
	}
	return p, nil
}

func checkAddress(kind, text string) error {
	if a, err := mail.ParseAddress(text); err != nil || strings.ContainsAny(a.Address, "\r\n") {
		return invalid("%s: %.200q is not a mail address", kind, text)
	}
	return nil
}
