//! Models that are part of the program.

/// The model of each name as a safetensors file, its configuration inside.
const MODELS: [(&str, &[u8]); 1] =
    [("codec-16khz", include_bytes!("../../../models/codec-16khz/model.safetensors"))];

/// The bytes of the model of that name, as its card has it, when it is part of the program.
pub fn embedded(name: &str) -> Option<&'static [u8]> {
    MODELS.iter().find(|(known, _)| *known == name).map(|(_, bytes)| *bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use codec_io::card::cards;

    #[test]
    fn what_a_card_calls_embedded_is_here_and_as_the_card_says() {
        let names: Vec<&str> =
            cards().iter().filter(|card| card.embedded).map(|card| card.name.as_str()).collect();
        assert_eq!(names, MODELS.map(|(name, _)| name));
        for card in cards().iter().filter(|card| card.embedded) {
            let loaded = crate::load(&card.name, &Device::Cpu).unwrap();
            let info = loaded.codec.info();
            assert_eq!((info.model.as_str(), info.family), (card.name.as_str(), card.family.as_str()));
            assert_eq!((info.audio.sample_rate, info.audio.channels), (card.sample_rate, card.channels));
            assert_eq!((info.hop_length, &info.layout), (card.hop_length, &card.layout().unwrap()));
            let [file] = card.files.as_slice() else { panic!("one file") };
            assert_eq!(file.sha256.unwrap().0, loaded.sha256);
            assert_eq!(file.size, embedded(&card.name).map(|bytes| bytes.len() as u64));
        }
        assert!(embedded("lyra-v2").is_none());
    }
}
