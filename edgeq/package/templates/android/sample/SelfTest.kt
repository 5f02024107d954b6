package {{package}}.sample

import androidx.test.ext.junit.runners.AndroidJUnit4
import androidx.test.platform.app.InstrumentationRegistry
import org.junit.Assert.assertNull
import org.junit.Test
import org.junit.runner.RunWith

/** `./gradlew connectedAndroidTest`: this device answers as the verified runtime did. */
@RunWith(AndroidJUnit4::class)
class SelfTest {
    @Test
    fun goldenVectors() {
        val context = InstrumentationRegistry.getInstrumentation().targetContext
        Runner(context).use { assertNull(Golden.read(context).firstDrift(it)) }
    }
}
