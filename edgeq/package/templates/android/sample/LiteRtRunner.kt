package {{package}}.sample

import android.content.Context
import {{package}}.{{class}}
import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.tensorflow.lite.DataType
import org.tensorflow.lite.InterpreterApi

/** The model on LiteRT, mapped from the APK and checked against its sha256. */
class Runner(context: Context) : AutoCloseable {
    private val interpreter: InterpreterApi = context.assets.openFd({{class}}.ASSET).use { asset ->
        val bytes = {{class}}.map(asset.createInputStream(), asset.startOffset, asset.length)
        InterpreterApi.create(bytes, InterpreterApi.Options())
    }

    /** Little-endian bytes, type and shape of each input, by signature name; float32 outputs. */
    fun run(inputs: Map<String, Input>): Map<String, FloatArray> {
        val given = Array<Any>(interpreter.inputTensorCount) { index ->
            val bytes = inputs.getValue({{class}}.INPUTS[index]).bytes
            ByteBuffer.allocateDirect(bytes.size).order(ByteOrder.nativeOrder()).put(bytes).also { it.rewind() }
        }
        val taken = (0 until interpreter.outputTensorCount).associateWith { index ->
            ByteBuffer.allocateDirect(interpreter.getOutputTensor(index).numBytes()).order(ByteOrder.nativeOrder())
        }
        interpreter.runForMultipleInputsOutputs(given, taken)
        return taken.entries.associate { (index, buffer) ->
            val tensor = interpreter.getOutputTensor(index)
            buffer.rewind()
            val values = FloatArray(tensor.numElements())
            if (tensor.dataType() == DataType.FLOAT32) buffer.asFloatBuffer().get(values)
            else values.indices.forEach { values[it] = buffer.get(it).toFloat() }
            {{class}}.OUTPUTS[index] to values
        }
    }

    override fun close() = interpreter.close()
}

class Input(val dtype: String, val shape: LongArray, val bytes: ByteArray)
