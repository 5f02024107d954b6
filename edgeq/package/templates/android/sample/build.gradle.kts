plugins {
    id("com.android.application") version "8.7.3"
    id("org.jetbrains.kotlin.android") version "2.1.0"
}

android {
    namespace = "{{package}}.sample"
    compileSdk = {{target_sdk}}
    defaultConfig {
        applicationId = "{{package}}.sample"
        minSdk = {{min_sdk}}
        targetSdk = {{target_sdk}}
        versionCode = 1
        versionName = "{{version}}"
        testInstrumentationRunner = "androidx.test.runner.AndroidJUnitRunner"
    }
    androidResources { noCompress += listOf("ort", "tflite") } // so that the model can be memory-mapped
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
    kotlinOptions { jvmTarget = "17" }
}

dependencies {
    implementation(files("libs/{{name}}.aar"))
    implementation("{{dependency}}")
    androidTestImplementation("androidx.test:runner:1.6.2")
    androidTestImplementation("androidx.test.ext:junit:1.2.1")
}
