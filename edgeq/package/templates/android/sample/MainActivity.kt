package {{package}}.sample

import android.app.Activity
import android.os.Bundle
import android.widget.TextView
import {{package}}.{{class}}
import kotlin.concurrent.thread

/** Runs the golden vectors when it starts, and shows whether this device answers as the verified runtime did. */
class MainActivity : Activity() {
    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        val text = TextView(this).apply { textSize = 18f; setPadding(48, 48, 48, 48) }
        setContentView(text)
        thread {
            val drift = Runner(this).use { Golden.read(this).firstDrift(it) }
            val said = drift ?: "the golden vectors pass on this device"
            runOnUiThread { text.text = "${{{class}}.ASSET}: $said" }
        }
    }
}
