package {{package}}.sample

import ai.onnxruntime.OnnxJavaType
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtSession
import android.content.Context
import {{package}}.{{class}}
import java.nio.ByteBuffer
import java.nio.ByteOrder

/** The model on onnxruntime, mapped from the APK and checked against its sha256. */
class Runner(context: Context) : AutoCloseable {
    private val environment = OrtEnvironment.getEnvironment()
    private val session: OrtSession = context.assets.openFd({{class}}.ASSET).use { asset ->
        val bytes = {{class}}.map(asset.createInputStream(), asset.startOffset, asset.length)
        environment.createSession(bytes, OrtSession.SessionOptions())
    }

    /** Little-endian bytes, type and shape of each input; float32 outputs. */
    fun run(inputs: Map<String, Input>): Map<String, FloatArray> {
        val tensors = inputs.mapValues { (_, input) ->
            val data = ByteBuffer.allocateDirect(input.bytes.size).order(ByteOrder.nativeOrder()).put(input.bytes)
            data.rewind()
            OnnxTensor.createTensor(environment, data, input.shape, TYPES.getValue(input.dtype))
        }
        session.run(tensors).use { outputs ->
            return outputs.associate { (name, value) ->
                val buffer = (value as OnnxTensor).floatBuffer
                name to FloatArray(buffer.remaining()).also(buffer::get)
            }.also { tensors.values.forEach(OnnxTensor::close) }
        }
    }

    override fun close() = session.close()

    private companion object {
        val TYPES = mapOf(
            "float32" to OnnxJavaType.FLOAT, "uint8" to OnnxJavaType.UINT8, "int8" to OnnxJavaType.INT8,
            "int32" to OnnxJavaType.INT32, "int64" to OnnxJavaType.INT64, "bool" to OnnxJavaType.BOOL,
        )
    }
}

class Input(val dtype: String, val shape: LongArray, val bytes: ByteArray)
