package notify

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"net"
	"net/mail"
	"net/textproto"
	"slices"
	"strings"

	"github.com/holdfast-backup/holdfast"
	gomail "github.com/wneessen/go-mail"
)

// Mail sends to people by SMTP. Each recipient gets a mail of their own, so that one refused address does not take it from the others.
type Mail struct {
	Host         string   `json:"host"`
	Port         int      `json:"port,omitzero"`     // 0: 587 with starttls, 465 with tls, 25 with plain
	Security     Security `json:"security,omitzero"` // "": starttls
	CA           string   `json:"ca,omitempty"`      // PEM; instead of the system's
	User         string   `json:"user,omitempty"`    // "": no authentication
	Password     Secret   `json:"password,omitempty"`
	PasswordFile string   `json:"password_file,omitempty"` // read at each attempt; instead of Password
	Auth         string   `json:"auth,omitempty"`          // plain, login, cram-md5, scram-sha-1, scram-sha-256; "": the best that the server offers
	From         string   `json:"from"`
	To           []string `json:"to"`
	Hello        string   `json:"hello,omitempty"` // the name to greet with; "": the machine's
}

// Security is how a mail connection is protected.
type Security string

const (
	StartTLS Security = "starttls" // begins in the clear; without TLS nothing is sent
	TLS      Security = "tls"      // TLS from the first byte
	PlainTCP Security = "plain"    // none; for a relay on the same machine or network
)

var mailAuths = map[string]gomail.SMTPAuthType{"plain": gomail.SMTPAuthPlain, "login": gomail.SMTPAuthLogin, "cram-md5": gomail.SMTPAuthCramMD5,
	"scram-sha-1": gomail.SMTPAuthSCRAMSHA1, "scram-sha-256": gomail.SMTPAuthSCRAMSHA256}

func (t *Mail) check() error {
	if t.Host == "" || len(t.Host) > 255 || strings.ContainsAny(t.Host, "/ \r\n") || t.Port < 0 || t.Port > 65535 {
		return invalid("mail: %.80q port %d is not a server", t.Host, t.Port)
	}
	if !slices.Contains([]Security{"", StartTLS, TLS, PlainTCP}, t.Security) {
		return invalid("mail: the security %.80q is none of starttls, tls and plain", t.Security)
	}
	if _, ok := mailAuths[t.Auth]; t.Auth != "" && !ok {
		return invalid("mail: the authentication %.80q is none of plain, login, cram-md5, scram-sha-1 and scram-sha-256", t.Auth)
	}
	if len(t.To) < 1 || len(t.To) > maxRcpts {
		return invalid("mail: %d recipients; 1 to %d are needed", len(t.To), maxRcpts)
	}
	for _, a := range append([]string{t.From}, t.To...) {
		if err := checkAddress("mail", a); err != nil {
			return err
		}
	}
	if strings.ContainsAny(t.Hello, " \r\n") {
		return invalid("mail: %.80q is not a host name", t.Hello)
	}
	return checkCA("mail", t.CA)
}

func (t *Mail) options(dial gomail.DialContextFunc) ([]gomail.Option, error) {
	config, err := t.tlsConfig()
	if err != nil {
		return nil, err
	}
	port := map[Security]int{"": 587, StartTLS: 587, TLS: 465, PlainTCP: 25}[t.Security]
	if t.Port > 0 {
		port = t.Port
	}
	opts := []gomail.Option{gomail.WithPort(port), gomail.WithTimeout(attemptTimeout), gomail.WithDialContextFunc(dial), gomail.WithoutNoop(),
		gomail.WithTLSConfig(config)}
	switch t.Security {
	case PlainTCP:
		opts = append(opts, gomail.WithTLSPolicy(gomail.NoTLS))
	case TLS:
		opts = append(opts, gomail.WithSSL()) // the dialer does it; this keeps STARTTLS away
	default:
		opts = append(opts, gomail.WithTLSPolicy(gomail.TLSMandatory))
	}
	if t.Hello != "" {
		opts = append(opts, gomail.WithHELO(t.Hello))
	}
	if t.User != "" {
		opts = append(opts, gomail.WithUsername(t.User), gomail.WithPassword(t.Password.Reveal()))
		if a, ok := mailAuths[t.Auth]; ok {
			opts = append(opts, gomail.WithSMTPAuth(a))
		} else {
			opts = append(opts, gomail.WithOpportunisticSMTPAuth(gomail.SMTPAuthSCRAMSHA256, gomail.SMTPAuthSCRAMSHA1, gomail.SMTPAuthPlain,
				gomail.SMTPAuthLogin, gomail.SMTPAuthCramMD5))
		}
	}
	return opts, nil
}

// tlsConfig is the TLS of both ways, from the first byte and after STARTTLS.
func (t *Mail) tlsConfig() (*tls.Config, error) {
	roots, err := pool(t.CA)
	return &tls.Config{ServerName: t.Host, RootCAs: roots, MinVersion: tls.VersionTLS12}, err
}

// connect dials, and for Security TLS shakes hands.
func (t *Mail) connect(ctx context.Context, v env, network, addr string) (net.Conn, error) {
	conn, err := v.dial(ctx, network, addr)
	if err != nil || t.Security != TLS {
		return conn, err
	}
	config, err := t.tlsConfig()
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	secure := tls.Client(conn, config)
	if err := secure.HandshakeContext(ctx); err != nil {
		_ = conn.Close() // the handshake's error says more
		return nil, err
	}
	return secure, nil
}

// send speaks to the server once, for all recipients not yet served.
func (t *Mail) send(ctx context.Context, v env, m *Message, done []string) ([]string, error) {
	op := "mail through " + t.Host
	ctx, hangUp := context.WithTimeout(ctx, attemptTimeout)
	defer hangUp()
	opts, err := t.options(func(dctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := t.connect(dctx, v, network, addr)
		if err == nil { // the library heeds the context only while it dials
			context.AfterFunc(ctx, func() { _ = conn.Close() })
		}
		return conn, err
	})
	if err != nil {
		return done, err
	}
	c, err := gomail.NewClient(t.Host, opts...)
	if err != nil {
		return done, holdfast.Errorf(holdfast.Invalid, op, "%w", err)
	}
	client, err := c.DialToSMTPClientWithContext(ctx)
	if err != nil {
		return done, holdfast.Errorf(mailKind(err), op, "%w", err)
	}
	var failed []error
	for _, to := range t.To {
		if slices.Contains(done, to) {
			continue
		}
		msg, err := t.compose(m, to)
		if err != nil {
			return done, holdfast.Errorf(holdfast.Invalid, op, "%w", err)
		}
		if err := c.SendWithSMTPClient(client, msg); err != nil && !msg.IsDelivered() {
			failed = append(failed, holdfast.Errorf(mailKind(err), op, "%w", err))
			continue
		}
		done = append(slices.Clip(done), to)
	}
	_ = c.CloseWithSMTPClient(client) // what the server accepted stays accepted
	if len(failed) > 0 {
		return done, holdfast.Errorf(holdfast.KindOf(failed[0]), "", "%w", errors.Join(failed...))
	}
	return done, nil
}

func (t *Mail) compose(m *Message, to string) (*gomail.Msg, error) {
	msg := gomail.NewMsg()
	if err := errors.Join(msg.From(t.From), msg.To(to)); err != nil {
		return nil, err
	}
	from, err := mail.ParseAddress(t.From)
	if err != nil {
		return nil, err
	}
	domain := from.Address[strings.LastIndexByte(from.Address, '@')+1:]
	site := "Holdfast"
	if m.Site != "" {
		site += " " + m.Site
	}
	msg.Subject(oneLine("[" + site + "] " + m.Title))
	msg.SetDateWithValue(m.Time)
	msg.SetMessageIDWithValue(m.ID + "@" + domain)
	msg.SetGenHeader("Auto-Submitted", "auto-generated") // RFC 3834: no out-of-office answers
	msg.SetGenHeader("X-Holdfast-Severity", m.Severity.String())
	msg.SetGenHeader("X-Holdfast-Type", oneLine(string(m.Type)))
	if m.Alarm != "" {
		msg.SetGenHeader("X-Holdfast-Alarm", oneLine(m.Alarm+" "+string(m.State)))
		// Mail programs put the clearing beneath the alarm.
		thread := sha256.Sum256([]byte(m.Alarm))
		msg.SetGenHeader("References", "<"+hex.EncodeToString(thread[:16])+"@"+domain+">")
	}
	if m.Severity == holdfast.Alarm && m.State != Cleared {
		msg.SetImportance(gomail.ImportanceHigh)
	}
	msg.SetBodyString(gomail.TypeTextPlain, m.details())
	return msg, nil
}

// mailKind tells what an SMTP error means: the server's 5xx stays, its 4xx passes, and without an answer it was the way there.
func mailKind(err error) holdfast.Kind {
	code := 0
	var s *gomail.SendError
	var p *textproto.Error
	switch {
	case errors.As(err, &p):
		code = p.Code
	case errors.As(err, &s):
		code = s.ErrorCode()
	}
	switch {
	case code == 530 || code == 534 || code == 535:
		return holdfast.Permission
	case code >= 500:
		return holdfast.Invalid
	case code >= 400:
		return holdfast.Transient
	}
	return holdfast.Offline
}
