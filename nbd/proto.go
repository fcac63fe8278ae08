package nbd

import (
	"encoding/binary"
	"errors"

	"github.com/holdfast-backup/holdfast"
)

// Numbers of the protocol.
const (
	magicInit   = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption = 0x49484156454F5054 // "IHAVEOPT"
	magicReply  = 0x0003e889045565a9 // of an option reply

	magicRequest    = 0x25609513
	magicSimple     = 0x67446698
	magicStructured = 0x668e33ef

	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1

	optExportName      = 1
	optAbort           = 2
	optList            = 3
	optStartTLS        = 5
	optInfo            = 6
	optGo              = 7
	optStructuredReply = 8
	optListMeta        = 9
	optSetMeta         = 10

	repAck         = 1
	repServer      = 2
	repInfo        = 3
	repMeta        = 4
	repErrUnsup    = 1<<31 + 1
	repErrPolicy   = 1<<31 + 2
	repErrInvalid  = 1<<31 + 3
	repErrTLSReqd  = 1<<31 + 5
	repErrUnknown  = 1<<31 + 6
	repErrTooBig   = 1<<31 + 9
	infoExport     = 0
	infoName       = 1
	infoDescr      = 2
	infoBlockSize  = 3
	metaAllocation = "base:allocation"
	metaID         = 1 // our number of base:allocation

	txHasFlags    = 1 << 0
	txReadOnly    = 1 << 1
	txFlush       = 1 << 2
	txFUA         = 1 << 3
	txTrim        = 1 << 5
	txWriteZeroes = 1 << 6
	txDF          = 1 << 7
	txMultiConn   = 1 << 8

	cmdRead        = 0
	cmdWrite       = 1
	cmdDisc        = 2
	cmdFlush       = 3
	cmdTrim        = 4
	cmdWriteZeroes = 6
	cmdBlockStatus = 7

	cmdFlagFUA    = 1 << 0
	cmdFlagNoHole = 1 << 1
	cmdFlagDF     = 1 << 2
	cmdFlagReqOne = 1 << 3

	chunkDone        = 1 << 0
	chunkNone        = 0
	chunkOffsetData  = 1
	chunkOffsetHole  = 2
	chunkBlockStatus = 5
	chunkError       = 1<<15 + 1

	stateHole = 1 << 0
	stateZero = 1 << 1

	errPerm     = 1
	errIO       = 5
	errInval    = 22
	errNoSpc    = 28
	errOverflow = 75
	errNotSup   = 95
	errShutdown = 108

	requestHeaderBytes = 28
	optionHeaderBytes  = 16
)

// Bounds on what a client may make us hold.
const (
	maxRequestBytes  = 32 << 20 // of one read or write: what qemu and libnbd take for granted
	maxInflightBytes = 64 << 20 // of all requests of a connection: two of the largest
	maxInflight      = 16       // requests of a connection worked on at once
	pieceBytes       = 1 << 20  // a structured read is answered in pieces of this size
	maxOptionBytes   = 64 << 10 // of an option we know; more is refused
	maxSkipBytes     = 1 << 20  // of an option we refuse; more ends the connection
	maxOptions       = 1000     // of one negotiation, so that it ends
	maxQueries       = 64       // of one meta context option
	maxStatusRange   = 1 << 30  // bytes described by one block status reply
	maxStatusExtents = 8192     // extents in one block status reply
	preferredBlock   = 4096     // the host's page
	oldZeroes        = 124      // bytes after an old-style export name reply
)

// A request is one command's header.
type request struct {
	flags  uint16
	cmd    uint16
	cookie uint64
	off    uint64
	length uint32
}

var errMalformed = holdfast.Errorf(holdfast.Invalid, "parse nbd message", "malformed message")

// parseRequest reads a request header of requestHeaderBytes.
func parseRequest(b []byte) (request, error) {
	if len(b) != requestHeaderBytes || binary.BigEndian.Uint32(b) != magicRequest {
		return request{}, errMalformed
	}
	return request{
		flags:  binary.BigEndian.Uint16(b[4:]),
		cmd:    binary.BigEndian.Uint16(b[6:]),
		cookie: binary.BigEndian.Uint64(b[8:]),
		off:    binary.BigEndian.Uint64(b[16:]),
		length: binary.BigEndian.Uint32(b[24:]),
	}, nil
}

func (r request) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, magicRequest)
	b = binary.BigEndian.AppendUint16(b, r.flags)
	b = binary.BigEndian.AppendUint16(b, r.cmd)
	b = binary.BigEndian.AppendUint64(b, r.cookie)
	b = binary.BigEndian.AppendUint64(b, r.off)
	return binary.BigEndian.AppendUint32(b, r.length)
}

// An option is the header of one step of the negotiation.
type option struct {
	code   uint32
	length uint32
}

// parseOption reads an option header of optionHeaderBytes.
func parseOption(b []byte) (option, error) {
	if len(b) != optionHeaderBytes || binary.BigEndian.Uint64(b) != magicOption {
		return option{}, errMalformed
	}
	return option{binary.BigEndian.Uint32(b[8:]), binary.BigEndian.Uint32(b[12:])}, nil
}

func (o option) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, magicOption)
	b = binary.BigEndian.AppendUint32(b, o.code)
	return binary.BigEndian.AppendUint32(b, o.length)
}

// A goRequest is the payload of NBD_OPT_INFO and NBD_OPT_GO.
type goRequest struct {
	name  string
	infos []uint16
}

func parseGo(b []byte) (goRequest, error) {
	name, b, ok := cutString(b)
	if !ok || len(b) < 2 {
		return goRequest{}, errMalformed
	}
	n := int(binary.BigEndian.Uint16(b))
	if b = b[2:]; len(b) != 2*n {
		return goRequest{}, errMalformed
	}
	g := goRequest{name: name, infos: make([]uint16, n)}
	for i := range g.infos {
		g.infos[i] = binary.BigEndian.Uint16(b[2*i:])
	}
	return g, nil
}

func (g goRequest) append(b []byte) []byte {
	b = appendString(b, g.name)
	b = binary.BigEndian.AppendUint16(b, uint16(len(g.infos)))
	for _, i := range g.infos {
		b = binary.BigEndian.AppendUint16(b, i)
	}
	return b
}

// A metaRequest is the payload of NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT.
type metaRequest struct {
	name    string
	queries []string
}

func parseMeta(b []byte) (metaRequest, error) {
	name, b, ok := cutString(b)
	if !ok || len(b) < 4 {
		return metaRequest{}, errMalformed
	}
	n := binary.BigEndian.Uint32(b)
	if n > maxQueries {
		return metaRequest{}, errMalformed
	}
	b = b[4:]
	m := metaRequest{name: name, queries: make([]string, 0, n)}
	for range n {
		var q string
		if q, b, ok = cutString(b); !ok {
			return metaRequest{}, errMalformed
		}
		m.queries = append(m.queries, q)
	}
	if len(b) != 0 {
		return metaRequest{}, errMalformed
	}
	return m, nil
}

func (m metaRequest) append(b []byte) []byte {
	b = appendString(b, m.name)
	b = binary.BigEndian.AppendUint32(b, uint32(len(m.queries)))
	for _, q := range m.queries {
		b = appendString(b, q)
	}
	return b
}

// cutString takes a string with a 32-bit length off b.
func cutString(b []byte) (s string, rest []byte, ok bool) {
	if len(b) < 4 {
		return "", nil, false
	}
	n := binary.BigEndian.Uint32(b)
	if uint64(n) > uint64(len(b)-4) || n > maxOptionBytes {
		return "", nil, false
	}
	return string(b[4 : 4+n]), b[4+n:], true
}

func appendString(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}

// errno says in the protocol's numbers what went wrong.
func errno(err error) uint32 {
	var e protoError
	if errors.As(err, &e) {
		return uint32(e)
	}
	switch holdfast.KindOf(err) {
	case holdfast.NoSpace:
		return errNoSpc
	case holdfast.Permission, holdfast.Immutable:
		return errPerm
	case holdfast.Invalid:
		return errInval
	case holdfast.Unsupported:
		return errNotSup
	case holdfast.Cancelled:
		return errShutdown
	}
	return errIO
}

// A protoError is an error that the client made; the Backend was not asked.
type protoError uint32

func (e protoError) Error() string {
	switch e {
	case errPerm:
		return "the export is read-only"
	case errNoSpc:
		return "beyond the end of the disk"
	case errOverflow:
		return "the request is too large"
	}
	return "invalid request"
}
