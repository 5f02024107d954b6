package {{package}};

import java.io.ByteArrayOutputStream;
import java.io.FileInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;

/** The model of this library: where its asset lies, its checksum, its interface, and how it was quantized. */
public final class {{class}} {
    public static final String ASSET = {{asset}};
    public static final String SHA256 = {{sha256}};
    public static final String[] INPUTS = {{{inputs}}};
    public static final long[][] INPUT_SHAPES = {{{input_shapes}}};
    public static final String[] OUTPUTS = {{{outputs}}};
    public static final long[][] OUTPUT_SHAPES = {{{output_shapes}}};
    public static final String[] LABELS = {{{labels}}};

    /** Quantized activations: x = (code - ZERO_POINTS[i]) * SCALES[i] for the value QUANTIZED[i]. */
    public static final String[] QUANTIZED = {{{quantized}}};
    public static final float[] SCALES = {{{scales}}};
    public static final int[] ZERO_POINTS = {{{zero_points}}};

    private {{class}}() {}

    /** Reads the asset (context.getAssets().open(ASSET)) and checks it against SHA256. */
    public static byte[] read(InputStream asset) throws IOException {
        ByteArrayOutputStream bytes = new ByteArrayOutputStream();
        byte[] part = new byte[1 << 16];
        for (int n = asset.read(part); n >= 0; n = asset.read(part)) bytes.write(part, 0, n);
        byte[] model = bytes.toByteArray();
        check(ByteBuffer.wrap(model));
        return model;
    }

    /**
     * Maps the asset, which is stored uncompressed, without copying it, and checks it. For an AssetFileDescriptor d:
     * map(d.createInputStream(), d.getStartOffset(), d.getLength()).
     */
    public static ByteBuffer map(FileInputStream file, long offset, long length) throws IOException {
        ByteBuffer model = file.getChannel().map(FileChannel.MapMode.READ_ONLY, offset, length);
        check(model.duplicate());
        return model;
    }

    private static void check(ByteBuffer model) throws IOException {
        MessageDigest digest;
        try {
            digest = MessageDigest.getInstance("SHA-256");
        } catch (NoSuchAlgorithmException error) {
            throw new IOException(error);
        }
        digest.update(model);
        StringBuilder found = new StringBuilder();
        for (byte b : digest.digest()) found.append(String.format("%02x", b));
        if (!found.toString().equals(SHA256)) {
            throw new IOException(ASSET + ": sha256 " + found + ", expected " + SHA256);
        }
    }

    /** The largest absolute difference; infinite for another length or a NaN. What a self-test compares. */
    public static double difference(float[] found, float[] golden) {
        if (found.length != golden.length) return Double.POSITIVE_INFINITY;
        double worst = 0;
        for (int i = 0; i < found.length; i++) {
            double d = Math.abs((double) found[i] - golden[i]);
            if (Double.isNaN(d)) return Double.POSITIVE_INFINITY;
            worst = Math.max(worst, d);
        }
        return worst;
    }
}
