use super::*;

#[test]
fn close_codes_survive_the_wire_and_unknown_ones_are_other() {
    for code in CloseCode::ALL {
        assert_eq!(CloseCode::from_wire(code.to_wire()), code);
    }
    assert_eq!(CloseCode::from_wire(VarInt::from_u32(12)), CloseCode::Other);
    assert_eq!(CloseCode::from_wire(VarInt::MAX), CloseCode::Other);
}

#[test]
fn pieces_hold_every_byte_in_order_and_keep_to_their_size() {
    for lengths in [
        &[5, 0, 100_000, 3][..],
        &[64 * 1024 + 20],
        &[0],
        &[10, 64 * 1024, 10],
        &[1; 40],
    ] {
        let whole: Vec<u8> = (0..lengths.iter().sum::<usize>()).map(|at| at as u8).collect();
        let mut rest = Bytes::from(whole.clone());
        let mut chunks: VecDeque<Bytes> = lengths.iter().map(|&length| rest.split_to(length)).collect();
        let mut joined = Vec::new();
        while !chunks.is_empty() {
            let piece = first_bytes(&mut chunks, LARGE_PIECE_BYTES).concat();
            assert!(piece.len() <= LARGE_PIECE_BYTES + 2 * FRAME_OVERHEAD);
            joined.extend(piece);
        }
        assert_eq!(joined, whole);
    }
}

#[test]
fn of_many_small_frames_in_one_chunk_so_many_are_taken_at_a_time() {
    let mut decoder = FrameDecoder::new(10);
    // Frames of two bytes, in chunks that cut them.
    let whole: Vec<u8> = (0..3000_u32).flat_map(|n| [2, n as u8, (n >> 8) as u8]).collect();
    let mut chunks: VecDeque<Bytes> = whole.chunks(4000).map(Bytes::copy_from_slice).collect();
    let (mut taken, mut batches) = (Vec::new(), Vec::new());
    loop {
        let before = taken.len();
        let more = cut(&mut decoder, &mut chunks, |frame| {
            taken.push(frame);
            Ok(())
        });
        batches.push(taken.len() - before);
        if !more.unwrap() {
            break;
        }
    }
    assert_eq!(batches, [FRAME_BATCH, FRAME_BATCH, 3000 - 2 * FRAME_BATCH]);
    assert!((0..3000_u32).all(|n| taken[n as usize] == [n as u8, (n >> 8) as u8][..]));
    decoder.finish().unwrap();
}

#[test]
fn a_body_frame_is_what_the_decoder_takes() {
    for length in [0, 1, 127, 128, 16_384, 70_000] {
        let body = Bytes::from(vec![7; length]);
        let mut decoder = FrameDecoder::new(1 << 20);
        decoder.push(body_frame(body.clone()).concat().into());
        assert_eq!(decoder.next_frame().unwrap().unwrap(), body);
    }
}
