package notify

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"text/template"
	"time"

	"github.com/holdfast-backup/holdfast"
)

// Webhook posts each message to an address, as the JSON of Message or as what a template makes of it.
type Webhook struct {
	URL       string `json:"url"`                  // {token} in it stands for Token
	Token     Secret `json:"token,omitempty"`      // sent as a bearer token where the URL does not use it
	TokenFile string `json:"token_file,omitempty"` // read at each attempt; instead of Token
	// Key signs: X-Holdfast-Signature is "sha256=" and the hexadecimal HMAC-SHA256 of X-Holdfast-Timestamp, a dot and the body.
	Key         Secret `json:"key,omitempty"`
	KeyFile     string `json:"key_file,omitempty"`     // read at each attempt; instead of Key
	Template    string `json:"template,omitempty"`     // text/template over Message; json quotes a value
	ContentType string `json:"content_type,omitempty"` // of what the template makes; application/json if empty
	CA          string `json:"ca,omitempty"`           // PEM; instead of the system's
}

// Ntfy publishes to a topic of an ntfy server.
type Ntfy struct {
	URL       string `json:"url"` // of the server
	Topic     string `json:"topic"`
	Token     Secret `json:"token,omitempty"`
	TokenFile string `json:"token_file,omitempty"` // read at each attempt; instead of Token
	CA        string `json:"ca,omitempty"`
}

// Gotify posts to a gotify server as one of its applications.
type Gotify struct {
	URL       string `json:"url"` // of the server
	Token     Secret `json:"token,omitempty"`
	TokenFile string `json:"token_file,omitempty"` // read at each attempt; instead of Token
	CA        string `json:"ca,omitempty"`
}

// Headers of a webhook.
const (
	HeaderDelivery  = "X-Holdfast-Delivery"  // the message's id: the same when it is sent again
	HeaderTimestamp = "X-Holdfast-Timestamp" // seconds since 1970, when this attempt was made
	HeaderSignature = "X-Holdfast-Signature"
)

// Sign returns the signature of a webhook's body, as HeaderSignature carries it.
func Sign(key Secret, timestamp string, body []byte) string {
	h := hmac.New(sha256.New, []byte(key.Reveal()))
	h.Write([]byte(timestamp + "."))
	h.Write(body)
	return "sha256=" + hex.EncodeToString(h.Sum(nil))
}

const (
	maxRequest  = 256 << 10 // bytes that a template may make
	maxResponse = 4 << 10   // bytes of an answer that are read
)

func (w *Webhook) parse() (*template.Template, error) {
	quote := func(v any) (string, error) {
		b, err := json.Marshal(v)
		return string(b), err
	}
	return template.New("webhook").Funcs(template.FuncMap{"json": quote, "upper": strings.ToUpper}).Option("missingkey=zero").Parse(w.Template)
}

func (w *Webhook) check() error {
	if err := checkURL("webhook", w.URL); err != nil {
		return err
	}
	if strings.Contains(w.URL, "{token}") && w.Token == "" && w.TokenFile == "" {
		return invalid("webhook: the address needs a token")
	}
	if len(w.Template) > maxText {
		return invalid("webhook: the template is longer than %d bytes", maxText)
	}
	if strings.ContainsAny(w.ContentType, "\r\n") {
		return invalid("webhook: the content type has more than one line")
	}
	if _, err := w.body(&Message{Title: "Test", Text: "Test", Fields: map[string]string{}}); err != nil {
		return err
	}
	return checkCA("webhook", w.CA)
}

func (w *Webhook) body(m *Message) ([]byte, error) {
	if w.Template == "" {
		return json.Marshal(m)
	}
	t, err := w.parse()
	if err != nil {
		return nil, invalid("webhook: the template: %w", err)
	}
	b := &bounded{left: maxRequest}
	if err := t.Execute(b, m); err != nil {
		return nil, invalid("webhook: the template: %w", err)
	}
	return b.Bytes(), nil
}

// bounded is a buffer that refuses to grow too far.
type bounded struct {
	bytes.Buffer
	left int
}

func (b *bounded) Write(p []byte) (int, error) {
	if b.left -= len(p); b.left < 0 {
		return 0, errors.New("it makes too much")
	}
	return b.Buffer.Write(p)
}

func (w *Webhook) send(ctx context.Context, v env, m *Message, _ []string) ([]string, error) {
	body, err := w.body(m)
	if err != nil {
		return nil, err
	}
	h := http.Header{}
	h.Set("Content-Type", "application/json")
	if w.Template != "" && w.ContentType != "" {
		h.Set("Content-Type", w.ContentType)
	}
	timestamp := strconv.FormatInt(v.clock.Now().Unix(), 10)
	h.Set(HeaderDelivery, m.ID)
	h.Set(HeaderTimestamp, timestamp)
	if w.Key != "" {
		h.Set(HeaderSignature, Sign(w.Key, timestamp, body))
	}
	at := strings.ReplaceAll(w.URL, "{token}", w.Token.Reveal())
	if w.Token != "" && at == w.URL {
		h.Set("Authorization", "Bearer "+w.Token.Reveal())
	}
	return nil, post(ctx, v, at, w.URL, w.CA, h, body)
}

func (n *Ntfy) check() error {
	if err := checkURL("ntfy", n.URL); err != nil {
		return err
	}
	if n.Topic == "" || len(n.Topic) > 64 || strings.ContainsAny(n.Topic, "/?# \r\n") {
		return invalid("ntfy: %.80q is not a topic", n.Topic)
	}
	return checkCA("ntfy", n.CA)
}

func (n *Ntfy) send(ctx context.Context, v env, m *Message, _ []string) ([]string, error) {
	priority, tag := map[holdfast.Severity]int{holdfast.Info: 3, holdfast.Warning: 4, holdfast.Alarm: 5}[m.Severity], "warning"
	switch {
	case m.State == Cleared:
		priority, tag = 3, "white_check_mark"
	case m.Severity == holdfast.Info:
		tag = "information_source"
	case m.Severity == holdfast.Alarm:
		tag = "rotating_light"
	}
	// An ntfy server turns longer messages into attachments.
	body, err := json.Marshal(map[string]any{"topic": n.Topic, "title": m.Title, "message": clipText(m.Text, 3500), "priority": priority, "tags": []string{tag}})
	if err != nil {
		return nil, err
	}
	h := http.Header{"Content-Type": {"application/json"}}
	if n.Token != "" {
		h.Set("Authorization", "Bearer "+n.Token.Reveal())
	}
	return nil, post(ctx, v, n.URL, n.URL, n.CA, h, body)
}

func (g *Gotify) check() error {
	if err := checkURL("gotify", g.URL); err != nil {
		return err
	}
	if g.Token == "" && g.TokenFile == "" {
		return invalid("gotify: the application's token is missing")
	}
	return checkCA("gotify", g.CA)
}

func (g *Gotify) send(ctx context.Context, v env, m *Message, _ []string) ([]string, error) {
	priority := map[holdfast.Severity]int{holdfast.Info: 2, holdfast.Warning: 5, holdfast.Alarm: 8}[m.Severity]
	body, err := json.Marshal(map[string]any{"title": m.Title, "message": m.Text, "priority": priority})
	if err != nil {
		return nil, err
	}
	at := strings.TrimSuffix(g.URL, "/") + "/message"
	return nil, post(ctx, v, at, at, g.CA, http.Header{"Content-Type": {"application/json"}, "X-Gotify-Key": {g.Token.Reveal()}}, body)
}

// post sends one request over a connection of its own and takes any 2xx for success. Redirects are not followed: what is signed for one
// address must not go to another. shown is the address without secrets, for errors.
func post(ctx context.Context, v env, at, shown, ca string, h http.Header, body []byte) error {
	shown = redactURL(shown)
	roots, err := pool(ca)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, at, bytes.NewReader(body))
	if err != nil {
		return invalid("%s is not an address", shown)
	}
	req.Header = h
	req.Header.Set("User-Agent", "Holdfast")
	c := http.Client{
		Transport: &http.Transport{DialContext: v.dial, DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
			MaxResponseHeaderBytes: 64 << 10},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := c.Do(req)
	if err != nil {
		var u *url.Error // its text has the address with its secrets
		if errors.As(err, &u) {
			err = u.Err
		}
		return holdfast.Errorf(holdfast.Offline, "post to "+shown, "%w", err)
	}
	defer resp.Body.Close() //nolint:errcheck // nothing was written; the status has been read
	said, _ := io.ReadAll(io.LimitReader(resp.Body, maxResponse))
	if resp.StatusCode/100 == 2 {
		return nil
	}
	kind := holdfast.Invalid
	switch {
	case resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode == http.StatusRequestTimeout || resp.StatusCode/100 == 5:
		kind = holdfast.Transient
	case resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden:
		kind = holdfast.Permission
	}
	e := holdfast.Errorf(kind, "post to "+shown, "the server answered %s: %s", oneLine(resp.Status), oneLine(string(said)))
	if s, err := strconv.ParseUint(resp.Header.Get("Retry-After"), 10, 31); err == nil && kind == holdfast.Transient {
		return &laterError{e, time.Duration(s) * time.Second}
	}
	return e
}

// laterError is an error of a server that says when to try again.
type laterError struct {
	err   error
	after time.Duration
}

func (e *laterError) Error() string { return e.err.Error() }

func (e *laterError) Unwrap() error { return e.err }
