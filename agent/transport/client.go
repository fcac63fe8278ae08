package transport

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/wire"
	"github.com/holdfast-backup/holdfast/internal/clock"
)

const (
	connectTime    = 10 * time.Second // for a connection and its TLS handshake
	callTime       = 30 * time.Second // for one request and its answer
	maxAnswerBytes = 64 << 10
)

// A Client speaks to the appliance as one enrolled agent. Methods are safe for concurrent use.
type Client struct {
	server        string
	control, data *tls.Config
	http          *http.Client
	clock         clock.Clock
}

// New returns a client; it does not connect yet. The error says that the identity is not usable. A nil clock is the System clock.
func New(id Identity, c clock.Clock) (*Client, error) {
	if c == nil {
		c = clock.System
	}
	control, err := id.config(c, wire.ALPNControl)
	if err != nil {
		return nil, err
	}
	data, err := id.config(c, wire.ALPNData)
	if err != nil {
		return nil, err
	}
	return &Client{server: id.Server, control: control, data: data, http: newHTTP(control), clock: c}, nil
}

// newHTTP returns an HTTP/2 client that uses no proxy and follows no redirect: the appliance is where the identity says.
func newHTTP(config *tls.Config) *http.Client {
	var only http.Protocols
	only.SetHTTP2(true)
	return &http.Client{
		Transport: &http.Transport{
			DialContext:         (&net.Dialer{Timeout: connectTime}).DialContext,
			TLSClientConfig:     config,
			TLSHandshakeTimeout: connectTime,
			Protocols:           &only,
			HTTP2:               &http.HTTP2Config{SendPingTimeout: 3 * wire.HeartbeatEvery, PingTimeout: 3 * wire.HeartbeatEvery},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// Close gives idle connections back. Links and calls under way go on.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Dial opens a link for the data of one task. Its owner ends it with Close or Abort.
func (c *Client) Dial(ctx context.Context, o wire.LinkOptions) (*wire.Link, error) {
	l, err := wire.Dial(ctx, func(ctx context.Context) (net.Conn, error) {
		d := tls.Dialer{NetDialer: &net.Dialer{Timeout: connectTime}, Config: c.data}
		conn, err := d.DialContext(ctx, "tcp", c.server)
		if err != nil {
			return nil, c.classify("connect", err)
		}
		return conn, nil
	}, o)
	if err != nil {
		return nil, c.classify("connect", err)
	}
	return l, nil
}

// Inventory sends what the host has.
func (c *Client) Inventory(ctx context.Context, inv wire.Inventory) error {
	return c.call(ctx, http.MethodPost, wire.PathInventory, inv, nil)
}

// Report sends how tasks go.
func (c *Client) Report(ctx context.Context, rs []wire.Report) error {
	return c.call(ctx, http.MethodPost, wire.PathReport, rs, nil)
}

// call makes one request with a JSON body and reads a JSON answer into out, if not nil.
func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	b, err := json.Marshal(in)
	if err != nil {
		return holdfast.Errorf(holdfast.Internal, "call appliance", "%w", err)
	}
	resp, err := c.do(ctx, method, path, bytes.NewReader(b))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes+1))
	if err != nil {
		return c.classify("read answer", err)
	}
	if out == nil {
		return nil
	}
	if len(body) > maxAnswerBytes {
		return holdfast.Errorf(holdfast.Invalid, "read answer", "more than %d bytes", maxAnswerBytes)
	}
	if err := json.Unmarshal(body, out); err != nil {
		return holdfast.Errorf(holdfast.Invalid, "read answer", "%w", err)
	}
	return nil
}

// do makes one request; an answer that is not a success is an error.
func (c *Client) do(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "https://"+c.server+path, body)
	if err != nil {
		return nil, holdfast.Errorf(holdfast.Invalid, "call appliance", "%w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.classify("call appliance", c.because(ctx, err))
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, refusal(resp)
}

// because looks for what is behind a failed request. In TLS 1.3 a client has finished its handshake before the server looks at its certificate, and
// HTTP/2 may find the connection closed before it reads the alert that says why: another connection is made to read it.
func (c *Client) because(ctx context.Context, err error) error {
	var op *net.OpError
	if errors.As(err, &op) && (op.Op == "dial" || op.Op == "remote error") || ctx.Err() != nil {
		return err
	}
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: connectTime}, Config: c.control}
	conn, dialErr := d.DialContext(ctx, "tcp", c.server)
	if dialErr != nil {
		return err
	}
	defer conn.Close()
	defer closeOn(ctx, conn)()
	if _, readErr := conn.Read(make([]byte, 1)); errors.As(readErr, &op) && op.Op == "remote error" { // a server that agrees speaks first
		return readErr
	}
	return err
}

// closeOn closes conn when ctx is over, until the function returned is called.
func closeOn(ctx context.Context, conn net.Conn) (stop func() bool) {
	return context.AfterFunc(ctx, func() { conn.Close() })
}

// refusal makes an error of an answer: the Failure in its body, or what its status says.
func refusal(resp *http.Response) error {
	var f wire.Failure
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes))
	if err == nil && json.Unmarshal(b, &f) == nil && f.Message != "" {
		return f.AsError()
	}
	kind := holdfast.Internal
	switch s := resp.StatusCode; {
	case s == http.StatusUnauthorized || s == http.StatusForbidden:
		kind = holdfast.Permission
	case s == http.StatusNotFound:
		kind = holdfast.NotExist
	case s == http.StatusTooManyRequests || s == http.StatusServiceUnavailable:
		kind = holdfast.Transient
	case s/100 == 4:
		kind = holdfast.Invalid
	}
	return holdfast.Errorf(kind, "call appliance", "it answered %s", resp.Status)
}

// classify gives an error of a connection its kind: Permission where one side did not accept the other's certificate, else Offline.
func (c *Client) classify(op string, err error) error {
	var known *holdfast.Error
	if errors.As(err, &known) {
		return err
	}
	var remote *net.OpError
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var host x509.HostnameError
	switch {
	case errors.Is(err, context.Canceled):
		return holdfast.Errorf(holdfast.Cancelled, op, "%w", err)
	case errors.As(err, &unknown) || errors.As(err, &host) || errors.As(err, &invalid):
		return holdfast.Errorf(holdfast.Permission, op, "%s is not the appliance this agent is enrolled with: %w", c.server, err).
			Advise("check the address; if the appliance was set up anew, enrol the agent again")
	case errors.As(err, &remote) && remote.Op == "remote error":
		return holdfast.Errorf(holdfast.Permission, op, "the appliance did not accept this agent's certificate: %w", err).
			Advise("enrol the agent again with a key from 'holdfast host enroll NAME'")
	}
	return holdfast.Errorf(holdfast.Offline, op, "%w", err).Advise("is the appliance up, and %s reachable from this host?", c.server)
}
