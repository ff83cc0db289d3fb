package wireguard

// logKeys writes the secrets of one exchange with p to Config.KeyLog. The caller calls it before it sends the initiation or the
// response, and holds no lock.
func (d *Device) logKeys(id *identity, p *peer, ephemeral PrivateKey, psk *PresharedKey) {
	if err := d.keyLog.Write(id.private, p.key, ephemeral, *psk); err != nil {
		d.warn("the key log takes no more keys", "err", err)
	}
}
