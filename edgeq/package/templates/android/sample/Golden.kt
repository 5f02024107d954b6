package {{package}}.sample

import android.content.Context
import android.util.Base64
import {{package}}.{{class}}
import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.json.JSONObject

/** golden.json: inputs, and what the verified runtime answered. */
class Golden(private val json: JSONObject) {
    /** The first output that is off by more than its tolerance, in a sentence; null when there is none. */
    fun firstDrift(runner: Runner): String? {
        val samples = json.getJSONArray("samples")
        for (index in 0 until samples.length()) {
            val sample = samples.getJSONObject(index)
            val inputs = sample.getJSONObject("inputs")
            val outputs = runner.run(inputs.keys().asSequence().associateWith { input(inputs.getJSONObject(it)) })
            val wanted = sample.getJSONObject("outputs")
            for (name in wanted.keys()) {
                val difference = {{class}}.difference(outputs[name] ?: FloatArray(0), floats(wanted.getJSONObject(name)))
                val tolerance = json.getJSONObject("tolerance").getDouble(name)
                if (difference > tolerance) return "output $name of sample $index is off by $difference, over $tolerance"
            }
        }
        return null
    }

    private fun input(array: JSONObject): Input {
        val shape = array.getJSONArray("shape")
        return Input(array.getString("dtype"), LongArray(shape.length()) { shape.getLong(it) }, bytes(array))
    }

    private fun floats(array: JSONObject): FloatArray {
        val buffer = ByteBuffer.wrap(bytes(array)).order(ByteOrder.LITTLE_ENDIAN)
        return when (val dtype = array.getString("dtype")) {
            "float32" -> FloatArray(buffer.remaining() / 4) { buffer.getFloat(4 * it) }
            "int8" -> FloatArray(buffer.remaining()) { buffer.get(it).toFloat() }
            "uint8" -> FloatArray(buffer.remaining()) { (buffer.get(it).toInt() and 255).toFloat() }
            "int32" -> FloatArray(buffer.remaining() / 4) { buffer.getInt(4 * it).toFloat() }
            "int64" -> FloatArray(buffer.remaining() / 8) { buffer.getLong(8 * it).toFloat() }
            else -> error("no comparison for outputs of type $dtype")
        }
    }

    private fun bytes(array: JSONObject) = Base64.decode(array.getString("data"), Base64.DEFAULT)

    companion object {
        fun read(context: Context): Golden {
            val text = context.assets.open("{{name}}/golden.json").bufferedReader().use { it.readText() }
            return Golden(JSONObject(text))
        }
    }
}
