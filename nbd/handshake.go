package nbd

import (
	"encoding/binary"
	"io"
	"strings"

	"github.com/holdfast-backup/holdfast"
)

// errDone ends a connection without being an error: the client said goodbye.
var errDone = holdfast.Errorf(holdfast.Cancelled, "negotiate nbd", "the client left")

// negotiate runs the handshake until an export is chosen.
func (c *conn) negotiate() error {
	hello := binary.BigEndian.AppendUint64(nil, magicInit)
	hello = binary.BigEndian.AppendUint64(hello, magicOption)
	hello = binary.BigEndian.AppendUint16(hello, flagFixedNewstyle|flagNoZeroes)
	if _, err := c.nc.Write(hello); err != nil {
		return err
	}
	var fl [4]byte
	if _, err := io.ReadFull(c.br, fl[:]); err != nil {
		return err
	}
	flags := binary.BigEndian.Uint32(fl[:])
	if flags&^(flagFixedNewstyle|flagNoZeroes) != 0 {
		return holdfast.Errorf(holdfast.Unsupported, "negotiate nbd", "unknown client flags %#x", flags)
	}
	c.noZeroes = flags&flagNoZeroes != 0
	for range maxOptions {
		done, err := c.option()
		if err != nil || done {
			return err
		}
	}
	return holdfast.Errorf(holdfast.Invalid, "negotiate nbd", "more than %d options", maxOptions)
}

// option handles one option; done means that the transmission phase begins.
func (c *conn) option() (done bool, err error) {
	var head [optionHeaderBytes]byte
	if _, err := io.ReadFull(c.br, head[:]); err != nil {
		return false, err
	}
	o, err := parseOption(head[:])
	if err != nil {
		return false, err
	}
	if o.length > maxSkipBytes {
		return false, holdfast.Errorf(holdfast.Invalid, "negotiate nbd", "an option of %d bytes", o.length)
	}
	if o.length > maxOptionBytes {
		if _, err := io.CopyN(io.Discard, c.br, int64(o.length)); err != nil {
			return false, err
		}
		if o.code == optExportName {
			return false, errMalformed // this option has no error reply
		}
		return false, c.optReply(o.code, repErrTooBig, nil)
	}
	payload := make([]byte, o.length)
	if _, err := io.ReadFull(c.br, payload); err != nil {
		return false, err
	}
	if c.srv.StartTLS != nil && !c.secure {
		return false, c.plainOption(o.code, payload)
	}
	return c.knownOption(o.code, payload)
}

// plainOption handles an option on a connection that must become TLS before anything else.
func (c *conn) plainOption(code uint32, payload []byte) error {
	switch {
	case code == optAbort:
		return c.abort()
	case code == optExportName:
		return holdfast.Errorf(holdfast.Permission, "negotiate nbd", "the client asked for an export without TLS")
	case code != optStartTLS:
		return c.optReply(code, repErrTLSReqd, nil)
	case len(payload) != 0:
		return c.optReply(code, repErrInvalid, nil)
	case c.br.Buffered() > 0:
		return holdfast.Errorf(holdfast.Invalid, "negotiate nbd", "plain bytes behind the request for TLS")
	}
	if err := c.optReply(code, repAck, nil); err != nil {
		return err
	}
	nc, err := c.srv.StartTLS(c.nc)
	if err != nil {
		return err
	}
	c.srv.mu.Lock()
	c.nc, c.secure = nc, true
	c.srv.mu.Unlock()
	c.br.Reset(nc)
	return nil
}

func (c *conn) knownOption(code uint32, payload []byte) (done bool, err error) {
	switch code {
	case optExportName:
		return true, c.exportName(string(payload))
	case optAbort:
		return false, c.abort()
	case optList:
		return false, c.list(payload)
	case optStartTLS:
		return false, c.optReply(code, repErrPolicy, nil)
	case optInfo, optGo:
		return c.infoOrGo(code, payload)
	case optStructuredReply:
		if len(payload) != 0 {
			return false, c.optReply(code, repErrInvalid, nil)
		}
		c.structured = true
		return false, c.optReply(code, repAck, nil)
	case optListMeta, optSetMeta:
		return false, c.meta(code, payload)
	}
	return false, c.optReply(code, repErrUnsup, nil)
}

func (c *conn) abort() error {
	if err := c.optReply(optAbort, repAck, nil); err != nil {
		return err
	}
	return errDone
}

// export finds an export; "" is the first one.
func (c *conn) export(name string) *Export {
	for i := range c.srv.exports {
		if e := &c.srv.exports[i]; e.Name == name || (name == "" && i == 0) {
			return e
		}
	}
	return nil
}

func (c *conn) exportName(name string) error {
	e := c.export(name)
	if e == nil {
		return holdfast.Errorf(holdfast.NotExist, "negotiate nbd", "there is no export %q", clip(name))
	}
	c.choose(e)
	b := binary.BigEndian.AppendUint64(nil, uint64(e.Backend.Size()))
	b = binary.BigEndian.AppendUint16(b, c.txFlags(e))
	if !c.noZeroes {
		b = append(b, make([]byte, oldZeroes)...)
	}
	_, err := c.nc.Write(b)
	return err
}

// choose makes e the connection's export; a meta context asked for under another name is dropped.
func (c *conn) choose(e *Export) {
	c.exp = e
	c.meta1 = c.metaOf == e
}

func (c *conn) txFlags(e *Export) uint16 {
	f := uint16(txHasFlags | txFlush | txFUA | txTrim | txWriteZeroes)
	if e.ReadOnly {
		f = txHasFlags | txReadOnly | txFlush
	}
	if c.structured {
		f |= txDF
	}
	if e.MultiConn {
		f |= txMultiConn
	}
	return f
}

func (c *conn) list(payload []byte) error {
	if len(payload) != 0 {
		return c.optReply(optList, repErrInvalid, nil)
	}
	for _, e := range c.srv.exports {
		if err := c.optReply(optList, repServer, append(appendString(nil, e.Name), e.Description...)); err != nil {
			return err
		}
	}
	return c.optReply(optList, repAck, nil)
}

func (c *conn) infoOrGo(code uint32, payload []byte) (done bool, err error) {
	g, err := parseGo(payload)
	if err != nil {
		return false, c.optReply(code, repErrInvalid, nil)
	}
	e := c.export(g.name)
	if e == nil {
		return false, c.optReply(code, repErrUnknown, []byte("there is no such export"))
	}
	b := binary.BigEndian.AppendUint16(nil, infoExport)
	b = binary.BigEndian.AppendUint64(b, uint64(e.Backend.Size()))
	b = binary.BigEndian.AppendUint16(b, c.txFlags(e))
	if err := c.optReply(code, repInfo, b); err != nil {
		return false, err
	}
	var told [infoBlockSize + 1]bool
	for _, i := range g.infos {
		if int(i) >= len(told) || told[i] || i == infoExport {
			continue // unknown information is left out, as the protocol wants
		}
		told[i] = true
		b := binary.BigEndian.AppendUint16(nil, i)
		switch i {
		case infoName:
			b = append(b, e.Name...)
		case infoDescr:
			b = append(b, e.Description...)
		case infoBlockSize:
			b = binary.BigEndian.AppendUint32(b, 1)
			b = binary.BigEndian.AppendUint32(b, preferredBlock)
			b = binary.BigEndian.AppendUint32(b, maxRequestBytes)
		}
		if err := c.optReply(code, repInfo, b); err != nil {
			return false, err
		}
	}
	if err := c.optReply(code, repAck, nil); err != nil {
		return false, err
	}
	if code == optGo {
		c.choose(e)
	}
	return code == optGo, nil
}

func (c *conn) meta(code uint32, payload []byte) error {
	m, err := parseMeta(payload)
	if code == optSetMeta {
		c.metaOf = nil // each such option forgets what was set before, even when it is refused
	}
	if err != nil || !c.structured {
		return c.optReply(code, repErrInvalid, nil)
	}
	e := c.export(m.name)
	if e == nil {
		return c.optReply(code, repErrUnknown, []byte("there is no such export"))
	}
	match := code == optListMeta && len(m.queries) == 0
	for _, q := range m.queries {
		match = match || q == metaAllocation || (code == optListMeta && q == "base:")
	}
	if match {
		id := uint32(metaID)
		if code == optListMeta {
			id = 0 // a list gives no numbers
		} else {
			c.metaOf = e
		}
		b := append(binary.BigEndian.AppendUint32(nil, id), metaAllocation...)
		if err := c.optReply(code, repMeta, b); err != nil {
			return err
		}
	}
	return c.optReply(code, repAck, nil)
}

func (c *conn) optReply(code, typ uint32, payload []byte) error {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, 20+len(payload)), magicReply)
	b = binary.BigEndian.AppendUint32(b, code)
	b = binary.BigEndian.AppendUint32(b, typ)
	b = binary.BigEndian.AppendUint32(b, uint32(len(payload)))
	_, err := c.nc.Write(append(b, payload...))
	return err
}

func clip(s string) string { return strings.ToValidUTF8(s[:min(len(s), 64)], "?") }
